"""Makes the JSON documents of the study of invariance: one for each photo, and one for the claims."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from zfserve.results import ModelIdentity
from zfserve.studies import FeatureDistance

from zfserve_studies.invariance.claims import Claim
from zfserve_studies.invariance.study import Sweep, SweptPhoto, distances


def photo_document(photo: SweptPhoto) -> dict[str, Any]:
    """Returns all numbers of one photo. Each list has one value for each step."""
    first = next(iter(photo.sweeps.values())).steps[0]
    return {
        "model": asdict(first.model),
        "computation": asdict(first.computation),
        "class": asdict(first.untouched),
        "border": first.border,
        "resampling": first.resampling,
        "sweeps": {kind: _sweep_document(sweep) for kind, sweep in photo.sweeps.items()},
    }


def claims_document(claims: Sequence[Claim], model: ModelIdentity, photos: int) -> dict[str, Any]:
    """Returns the claims, for `photos` photos."""
    return {
        "model": asdict(model),
        "photos": photos,
        "claims": [asdict(claim) | {"verdict": claim.verdict} for claim in claims],
    }


def _sweep_document(sweep: Sweep) -> dict[str, Any]:
    return {
        "steps": [each.step for each in sweep.steps],
        "probabilities": [each.for_class.probability for each in sweep.steps],
        "best": [each.best.label for each in sweep.steps],
        "low": _distances_document(distances(sweep.steps, lambda each: each.low)),
        "high": _distances_document(distances(sweep.steps, lambda each: each.high)),
    }


def _distances_document(found: list[FeatureDistance]) -> dict[str, Any] | None:
    if not found:
        return None
    return {
        "layer": found[0].layer,
        "distances": [each.distance for each in found],
        "relative": [each.relative for each in found],
    }
