"""Writes the results of an occlusion as text. The terminal, the figure and the page show the same words."""

from zfserve.occlusion import Blur, Fill, Occlusion
from zfserve.results import Box
from zfserve_cli.short_number import short_number

from zfserve_studies.occlusion.study import OccludedPhoto


def title_text(result: OccludedPhoto) -> str:
    """Returns the photo, the class and its probability in the photo without a square."""
    plan = result.occlusion.plan
    return f"{result.name}: {plan.for_class.label}, {plan.for_class.probability:.1%} without a square"


def method_text(result: OccludedPhoto) -> str:
    """Returns the model, how it was computed, and the square."""
    plan = result.occlusion.plan
    parts = [
        f"{plan.model.name} {plan.model.version}",
        f"{plan.computation.precision}, {plan.computation.engine}",
        f"square of {plan.size} pixels of the {result.input_size[1]} x {result.input_size[0]} input, "
        f"{fill_text(result.options.fill)}",
        f"{len(plan.tops)} x {len(plan.lefts)} places",
    ]
    return " · ".join(parts)


def fill_text(fill: Fill) -> str:
    """Returns the fill of the square in words."""
    match fill:
        case "mean":
            return "filled with the photo's mean colour"
        case Blur(sigma):
            return f"blurred with sigma {sigma:g}"
        case (red, green, blue):
            return f"filled with the colour {red}, {green}, {blue}"


def summary_text(result: OccludedPhoto) -> str:
    """Returns sentences that say where the square matters most, and what the network then says."""
    occlusion = result.occlusion
    plan, summary = occlusion.plan, occlusion.summary
    label, before, after = plan.for_class.label, plan.for_class.probability, summary.probability
    if after < before:
        text = f"The box matters most: with the square there, “{label}” falls from {before:.1%} to {after:.1%}."
    else:
        text = f"No place matters: “{label}” is never less probable than without a square ({before:.1%})."
    places = len(plan.tops) * len(plan.lefts)
    kept = sum(count for index, _, count in result.counted_labels() if index == plan.for_class.index)
    text += f" “{label}” is the most probable label at {kept} of {places} places."
    if plan.map is not None:
        text += f" {_map_text(occlusion)}"
    return text


def places_text(count: int) -> str:
    """Returns a number of places in words."""
    return "1 place" if count == 1 else f"{count} places"


def _map_text(occlusion: Occlusion) -> str:
    """Returns a sentence that says if the map and the class react to the same place, as the paper expects."""
    plan, summary = occlusion.plan, occlusion.summary
    sums = f"from {short_number(plan.map_sum)} to {short_number(summary.map_sum)}"
    if summary.map_sum >= plan.map_sum:
        return f"The sum of map {plan.map} never falls."
    overlap = summary.map_box is not None and _overlap(summary.box, summary.map_box)
    where = "at a place that the box touches" if overlap else "elsewhere"
    return f"The sum of map {plan.map} falls most {where}, {sums}."


def _overlap(one: Box, other: Box) -> bool:
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom
