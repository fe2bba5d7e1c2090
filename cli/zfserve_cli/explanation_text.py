"""Writes the figures of an explanation as text. The terminal and the picture show the same words."""

from collections.abc import Sequence

from zfserve.explanation import Explanation
from zfserve.results import Projection

from zfserve_cli.short_number import short_number

METHOD_NAMES = {"integrated-gradients": "integrated gradients", "grad-cam": "Grad-CAM"}


def probability_text(explanation: Explanation) -> str:
    """Returns the probability of the class, and both probabilities where the served one is not computed in float32."""
    worker = explanation.for_class.probability
    if explanation.served_precision in ("", "fp32"):
        return f"{worker:.1%}"
    return f"{explanation.served_probability:.1%} in {explanation.served_precision}, {worker:.1%} in float32"


def maps_text(explanation: Explanation, maps: Sequence[Projection]) -> str:
    """Returns a title for the maps that add most. With integrated gradients it has their share of the heatmap."""
    title = f"The maps of {explanation.layer} that add most to the score of “{explanation.for_class.label}”"
    if explanation.baseline_score is None or explanation.completeness_gap is None:
        return title
    whole = explanation.score - explanation.baseline_score - explanation.completeness_gap
    together = sum(each.attribution or 0.0 for each in maps)
    return f"{title}: together {short_number(together, sign='+')} of {short_number(whole, sign='+')}"


def score_text(explanation: Explanation) -> str:
    """Returns the score of the class, and with integrated gradients its parts and the completeness gap."""
    score = short_number(explanation.score)
    if explanation.baseline_score is None or explanation.completeness_gap is None:
        return score
    gained = explanation.score - explanation.baseline_score
    share = f" ({abs(explanation.completeness_gap / gained):.1%})" if gained else ""
    return (
        f"{score}: baseline {short_number(explanation.baseline_score)}, "
        f"heatmap {short_number(gained - explanation.completeness_gap, sign='+')}, "
        f"completeness gap {short_number(explanation.completeness_gap, 3, '+')}{share}"
    )
