"""Compares the network's answer for a photo with the truth, which a `truth.toml` beside the photo holds."""

import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from zfserve.results import Classification

FILE = "truth.toml"


@dataclass(frozen=True)
class Truth:
    """Holds the truth about one photo.

    Attributes:
        shows: the object that the photo shows.
        also: other names that a network may have for it.
        nearest: the label of the nearest class, for a network without a class for that object. "" if there is none.
        why: a sentence on what the projections show, for the network with one of the fingerprints. It may be "".
        weights: the fingerprints of the network whose projections `why` describes, in bundles of each schema.
    """

    shows: str
    also: Sequence[str] = ()
    nearest: str = ""
    why: str = ""
    weights: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """Judges one answer of the network.

    Attributes:
        word: "right", "wrong", or "near" for the nearest class if no class is right.
        sentence: a sentence that says it.
        why: a sentence on what the projections show. It may be "".
    """

    word: str
    sentence: str
    why: str = ""

    @property
    def mark(self) -> str:
        return {"right": "✓", "near": "≈", "wrong": "✗"}[self.word]


def read_truth(photo: Path) -> Truth | None:
    """Returns the truth about `photo`, or None if no file holds it.

    Raises:
        ValueError: the file beside the photo is malformed.
    """
    file = photo.with_name(FILE)
    if not file.is_file():
        return None
    try:
        truths = tomllib.loads(file.read_text(encoding="utf-8"))
        return Truth(**truths[photo.name], weights=truths.get("weights", ())) if photo.name in truths else None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def judge(truth: Truth, classification: Classification, labels: Collection[str]) -> Verdict:
    """Compares the most probable class with `truth`, for a network whose classes have `labels`.

    Upper and lower case are the same: ImageNet's labels have both.
    """
    said = classification.classes[0].label
    known = {label.casefold(): label for label in labels}
    right = next((known[name.casefold()] for name in (truth.shows, *truth.also) if name.casefold() in known), None)
    why = truth.why if classification.model.fingerprint in truth.weights else ""
    shown = f"the photo shows “{truth.shows}”"
    if said == right:
        return Verdict("right", "Right.", why)
    if right is not None:
        return Verdict("wrong", f"Wrong: {shown}, which {_rank_words(right, classification)}.", why)
    shown += f", none of its {len(labels):,} classes"
    if truth.nearest not in labels:
        return Verdict("wrong", f"Wrong, as any answer would be: {shown}.", why)
    if said == truth.nearest:
        return Verdict("near", f"Nearly right: {shown}, and the network chose the nearest class.", why)
    return Verdict(
        "wrong",
        f"Wrong: {shown}; the nearest class, {truth.nearest}, {_rank_words(truth.nearest, classification)}.",
        why,
    )


def _rank_words(label: str, classification: Classification) -> str:
    for number, score in enumerate(classification.classes, 1):
        if score.label == label:
            return f"was number {number} with {score.probability:.1%}"
    return f"is not among its first {len(classification.classes)}"
