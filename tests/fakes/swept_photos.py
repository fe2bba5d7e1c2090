"""Makes sweeps of photos by hand, for the claims and the figure of `zfserve invariance`."""

from collections.abc import Sequence

from fakes.pictures import png
from zfserve.results import ClassScore, ModelIdentity
from zfserve.studies import Computation, FeatureDistance, TransformKind, TransformStep
from zfserve_studies.invariance.study import Example, Sweep, SweptPhoto

Row = tuple[float, float, float, float, int]
"""Holds a step, the relative distances of the low and the high layer, the probability, and the most probable class."""


def sweep(kind: TransformKind, rows: Sequence[Row], *, layers: bool = True) -> Sweep:
    """Returns a sweep. The photo's class is 1, with the probability 0.5; raw distances are ten times the relative ones.

    Args:
        layers: False for a network that has no layer that can be read.
    """
    steps = tuple(
        TransformStep(
            rank=rank,
            total=len(rows),
            step=step,
            for_class=ClassScore("church", "n1", 1, probability),
            best=ClassScore(f"class {best}", f"n{best}", best, 0.5),
            low=FeatureDistance("conv1", 10 * low, low) if layers else None,
            high=FeatureDistance("features", 10 * high, high) if layers else None,
            picture_png=None,
            untouched=ClassScore("church", "n1", 1, 0.5),
            kind=kind,
            border="grey",
            resampling="bilinear",
            computation=Computation("int8", "openvino"),
            model=ModelIdentity("zfnet", "3", "ab12"),
        )
        for rank, (step, low, high, probability, best) in enumerate(rows)
    )
    return Sweep(kind, steps, tuple(Example(row[0], png((10, 20, 30))) for row in rows))


def swept(name: str, *sweeps: Sweep) -> SweptPhoto:
    """Returns a photo with these sweeps."""
    return SweptPhoto(name, {each.kind: each for each in sweeps})
