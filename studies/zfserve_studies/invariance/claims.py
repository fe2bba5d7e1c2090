"""Says for each claim of the paper about invariance if it holds for some photos, by a stated criterion.

The claims stand in section 4.1 of Zeiler & Fergus (ECCV 2014), which states no criteria. The criteria are ours, and
docs/studies.md lists them. All distances here are relative, because raw distances of two layers cannot be compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from zfserve.studies import FeatureDistance, TransformKind, TransformStep

from zfserve_studies.invariance.study import Sweep, SweptPhoto, change_size, distances

HALF = 0.5
"""A small change has a large effect, if it moves a layer by at least this share of the largest movement."""

LINEAR = 0.9
"""A curve is quasi-linear, if a line through zero explains at least this share of its variance (R squared)."""

STABLE = 0.9
"""The output is stable, if the most probable label stays at this share of the steps."""

FACTOR = 2.0
"""A change moves the low layer far more than the high one, if its distance is so many times as large."""

_MOVED: tuple[TransformKind, ...] = ("vertical-translation", "horizontal-translation", "scale")
_FEWEST = 3
"""A line through zero fits fewer steps than this too well."""


@dataclass(frozen=True)
class Claim:
    """Describes a claim, and if it holds here.

    Attributes:
        kind: the kind of transformation.
        claim: what the paper, or the text about it, says.
        criterion: when we say that it holds.
        measured: what was measured, in words.
        holds: True or False. None if it could not be measured.
    """

    kind: TransformKind
    claim: str
    criterion: str
    measured: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """Returns "holds", "does not hold" or "not measured"."""
        return {True: "holds", False: "does not hold", None: "not measured"}[self.holds]

    @property
    def sentence(self) -> str:
        """Returns the claim, the verdict, the numbers, and the criterion, as people read them."""
        kind = self.kind.replace("-", " ")
        return f"{kind}: {self.claim}. {self.verdict.capitalize()}: {self.measured}. It holds if {self.criterion}."


def judge_claims(photos: Sequence[SweptPhoto]) -> list[Claim]:
    """Returns all claims about the kinds that were swept.

    Args:
        photos: the photos, at least one, all swept through the same kinds.
    """
    claims = []
    for kind in photos[0].sweeps:
        sweeps = [photo.sweeps[kind] for photo in photos]
        if kind in (*_MOVED, "rotation"):
            claims.append(_small_changes(kind, sweeps))
        if kind in _MOVED:
            claims.append(_quasi_linear(kind, sweeps))
        if kind in ("hue", "brightness"):
            claims.append(_low_layers(kind, sweeps))
        claims.append(_not_invariant(photos) if kind == "rotation" else _stable(kind, sweeps))
    return claims


def _low(step: TransformStep) -> FeatureDistance | None:
    return step.low


def _high(step: TransformStep) -> FeatureDistance | None:
    return step.high


def first_share(sweep: Sweep, choose: Callable[[TransformStep], FeatureDistance | None]) -> float | None:
    """Returns the distance at the smallest change, over the largest distance of the sweep. None if nothing moves."""
    relative = [each.relative for each in distances(sweep.steps, choose)]
    sizes = [change_size(sweep.kind, each.step) for each in sweep.steps]
    largest = max(relative, default=0.0)
    changed = [size for size in sizes if size > 0]
    if not largest or not changed:
        return None
    near = [value for value, size in zip(relative, sizes, strict=True) if np.isclose(size, min(changed))]
    return float(np.mean(near)) / largest


def linearity(sweep: Sweep) -> list[float]:
    """Returns R squared of a line through zero for the distance of the last hidden layer, for each direction.

    Translations have two directions. A direction with fewer than three steps, or whose distances are all alike, is
    left out.
    """
    relative = distances(sweep.steps, _high)
    found = []
    for sign in (-1, 1):
        pairs = [
            (change_size(sweep.kind, step.step), distance.relative)
            for step, distance in zip(sweep.steps, relative, strict=False)
            if sign * (step.step - sweep.untouched.step) > 0
        ]
        if len(pairs) < _FEWEST:
            continue
        sizes, values = np.array(pairs).T
        total = float(((values - values.mean()) ** 2).sum())
        if total > 0:
            slope = float(sizes @ values / (sizes @ sizes))
            found.append(1 - float(((values - slope * sizes) ** 2).sum()) / total)
    return found


def _small_changes(kind: TransformKind, sweeps: Sequence[Sweep]) -> Claim:
    low = [share for sweep in sweeps if (share := first_share(sweep, _low)) is not None]
    high = [share for sweep in sweeps if (share := first_share(sweep, _high)) is not None]
    claim = "a small change has a dramatic effect in the first layer, and a lesser one at the top"
    criterion = f"at the smallest step, the first layer has moved by at least {HALF:.0%} of its most, the top by less"
    if not low or not high:
        return Claim(kind, claim, criterion, "no layer can be read, or none moved", None)
    first, top = float(np.median(low)), float(np.median(high))
    return Claim(kind, claim, criterion, f"first layer {first:.0%}, top {top:.0%} (medians)", first >= HALF > top)


def _quasi_linear(kind: TransformKind, sweeps: Sequence[Sweep]) -> Claim:
    found = [value for sweep in sweeps for value in linearity(sweep)]
    claim, criterion = "the top layer moves quasi-linearly", f"a line through zero has an R² of at least {LINEAR:g}"
    if not found:
        return Claim(kind, claim, criterion, "no layer can be read, or too few steps", None)
    middle = float(np.median(found))
    return Claim(kind, claim, criterion, f"R² {middle:.2f} (median)", middle >= LINEAR)


def kept_share(sweep: Sweep) -> float:
    """Returns the share of the changed steps at which the most probable label stays. 1 if no step changes anything."""
    kept = sweep.kept()
    return sum(kept) / len(kept) if kept else 1.0


def _stable(kind: TransformKind, sweeps: Sequence[Sweep]) -> Claim:
    share = float(np.mean([kept_share(sweep) for sweep in sweeps]))
    claim = "the output is stable" if kind in _MOVED else "the output is stable (not a claim of the paper)"
    criterion = f"the label stays at {STABLE:.0%} of the steps or more"
    return Claim(kind, claim, criterion, f"it stays at {share:.0%}; {_probability_text(sweeps)}", share >= STABLE)


def _not_invariant(photos: Sequence[SweptPhoto]) -> Claim:
    shares = {photo.name: kept_share(photo.sweeps["rotation"]) for photo in photos}
    share = float(np.mean([*shares.values()]))
    stay = [name for name, kept in shares.items() if kept >= STABLE]
    measured = f"it stays at {share:.0%}; {_probability_text([photo.sweeps['rotation'] for photo in photos])}"
    if stay:
        measured += f"; exceptions: {', '.join(stay[:5])}" + (f" and {len(stay) - 5} more" if len(stay) > 5 else "")
    claim = "the output is not invariant, except for objects with rotational symmetry"
    return Claim("rotation", claim, f"the label stays at less than {STABLE:.0%} of the steps", measured, share < STABLE)


def _low_layers(kind: TransformKind, sweeps: Sequence[Sweep]) -> Claim:
    ratios = []
    for sweep in sweeps:
        low, high = (sum(each.relative for each in distances(sweep.steps, choose)) for choose in (_low, _high))
        if high > 0 and low > 0:
            ratios.append(low / high)
    claim = "colour moves low layers, and high ones hardly (not a claim of the paper)"
    criterion = f"the first layer moves at least {FACTOR:g} times as far as the top"
    if not ratios:
        return Claim(kind, claim, criterion, "no layer can be read, or none moved", None)
    ratio = float(np.median(ratios))
    return Claim(kind, claim, criterion, f"{ratio:.2f} times as far (median)", ratio >= FACTOR)


def _probability_text(sweeps: Sequence[Sweep]) -> str:
    """Returns the mean probability of the class at the changed steps, beside that of the untouched photos."""
    changed = [
        step.for_class.probability for sweep in sweeps for step in sweep.steps if change_size(sweep.kind, step.step) > 0
    ]
    before = float(np.mean([sweep.steps[0].untouched.probability for sweep in sweeps]))
    after = float(np.mean(changed)) if changed else before
    return f"the class has {after:.0%} on average, and {before:.0%} untouched"
