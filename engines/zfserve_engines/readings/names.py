"""Names the inputs and outputs that readings add to a graph. `graph` adds them, and `engine` uses them."""

from zfserve_engines.readings.plan import ReadingPlan

KEEP, VALUES = "zfserve.keep", "zfserve.values"
"""The inputs of an ablation, each float32 (N, C, 1, 1). See `Replacement`."""

_PREFIX = "zfserve.reading"


def output_names(plan: ReadingPlan) -> list[list[str]]:
    """Returns the names of the outputs of each reading: its values, and for the form "strongest" also its positions.

    Values are float32 (N, C, H, W) for the form "maps", (N, C, 1) for "strongest" and (N, C) for "sums". Positions are
    int64 (N, C, 1), in row order.
    """
    return [
        [f"{_PREFIX}.{index}.values", *([f"{_PREFIX}.{index}.positions"] if reading.form == "strongest" else [])]
        for index, reading in enumerate(plan.readings)
    ]
