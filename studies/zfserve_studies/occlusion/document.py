"""Makes the JSON document of an occluded photo. `--json` prints it, and the page has it."""

from dataclasses import asdict
from typing import Any

from zfserve.occlusion import Blur, Fill

from zfserve_studies.occlusion.study import OccludedPhoto
from zfserve_studies.occlusion.text import summary_text


def occlusion_document(result: OccludedPhoto) -> dict[str, Any]:
    """Returns all numbers of an occluded photo. Each grid is a list of rows; a row of places has the same top edge."""
    occlusion = result.occlusion
    plan = asdict(occlusion.plan)
    document = {
        "model": plan["model"],
        "computation": plan["computation"],
        "input": {"height": result.input_size[0], "width": result.input_size[1]},
        "size": plan["size"],
        "fill": _fill_document(result.options.fill),
        "tops": plan["tops"],
        "lefts": plan["lefts"],
        "class": plan["for_class"],
        "best": plan["best"],
        "source_box": plan["source_box"],
        "layer": plan["layer"],
        "map": plan["map"],
        "map_sum": plan["map_sum"],
        "unit": plan["unit"],
        "activation": plan["activation"],
        "probabilities": occlusion.probabilities,
        "best_classes": occlusion.best_classes,
        "map_sums": occlusion.map_sums,
        "labels": {index: label for index, label, _ in result.counted_labels()},
        "summary": asdict(occlusion.summary) | {"text": summary_text(result)},
    }
    if result.projection is not None:
        document["projection"] = {
            "box": asdict(result.projection.box),
            "source_box": result.projection.source_box and asdict(result.projection.source_box),
            "rule": result.projection.rule,
        }
    if result.note:
        document["note"] = f"no projection: {result.note}"
    if result.references:
        document["references"] = [{"photo": each.photo, "activation": each.activation} for each in result.references]
    return document


def _fill_document(fill: Fill) -> dict[str, Any]:
    match fill:
        case "mean":
            return {"kind": "mean"}
        case Blur(sigma):
            return {"kind": "blur", "sigma": sigma}
        case colour:
            return {"kind": "colour", "colour": list(colour)}
