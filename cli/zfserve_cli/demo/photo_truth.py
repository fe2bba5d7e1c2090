"""What photos show, as a `truth.toml` beside them tells, held against what the network said. Called by the demo."""

import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from zfserve.results import Classification

FILE = "truth.toml"


@dataclass(frozen=True)
class Truth:
    """What one photo shows.

    Attributes:
        nearest: the class that comes nearest, for a network that has none for what is shown; or "".
        why: what the projections by the network with the fingerprint `weights` show; or "".
    """

    shows: str
    nearest: str = ""
    why: str = ""
    weights: str = ""


@dataclass(frozen=True)
class Verdict:
    """Of one answer.

    Attributes:
        word: "right", "near" for the nearest class where none is right, or "wrong".
        why: what the projections show of it; or "".
    """

    word: str
    sentence: str
    why: str = ""

    @property
    def mark(self) -> str:
        return {"right": "✓", "near": "≈", "wrong": "✗"}[self.word]


def read_truth(photo: Path) -> Truth | None:
    """What is known of `photo`; None where nothing is.

    Raises:
        ValueError: the file that should tell cannot be understood.
    """
    file = photo.with_name(FILE)
    if not file.is_file():
        return None
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
        return Truth(**told[photo.name], weights=told.get("weights", "")) if photo.name in told else None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def judge(truth: Truth, classification: Classification, labels: Collection[str]) -> Verdict:
    """Hold the best class against `truth`, for a network that knows `labels`."""
    said = classification.classes[0].label
    why = truth.why if truth.weights == classification.model.fingerprint else ""
    shown = f"the photo shows “{truth.shows}”"
    if said == truth.shows:
        return Verdict("right", "Right.", why)
    if truth.shows in labels:
        return Verdict("wrong", f"Wrong: {shown}, which {_place(truth.shows, classification)}.", why)
    shown += f", none of its {len(labels)} classes"
    if truth.nearest not in labels:
        return Verdict("wrong", f"Wrong, as it must be: {shown}.", why)
    if said == truth.nearest:
        return Verdict("near", f"Nearly right: {shown}, and it said the nearest.", why)
    return Verdict(
        "wrong", f"Wrong: {shown}; the nearest, {truth.nearest}, {_place(truth.nearest, classification)}.", why
    )


def _place(label: str, classification: Classification) -> str:
    for number, score in enumerate(classification.classes, 1):
        if score.label == label:
            return f"was number {number} with {score.probability:.1%}"
    return f"is not among its first {len(classification.classes)}"
