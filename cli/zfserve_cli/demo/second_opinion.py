"""Asks a second network about the same photo, and why it says what it says. `steps` calls it."""

from dataclasses import dataclass
from pathlib import Path

from zfserve.client import Client
from zfserve.explanation import Explanation
from zfserve.results import Classification

from zfserve_cli.demo.photo_truth import Truth, Verdict, judge

LAYER = "stage4"
"""The heatmap has 14 x 14 places at this stage of EfficientNet-Lite0. Its last layer has 7 x 7."""


@dataclass(frozen=True)
class SecondOpinion:
    """Holds the answer of the second network for one photo.

    Attributes:
        classes: the number of classes that it knows.
        classification: its answer.
        explanation: the places that speak for its most probable class.
        verdict: the comparison of the answer with the truth. None if no truth is known.
    """

    classes: int
    classification: Classification
    explanation: Explanation
    verdict: Verdict | None


def ask_second(client: Client, photo: Path, truth: Truth | None, model: str) -> SecondOpinion:
    """Classifies and explains `photo` with the network `model` of the service."""
    labels = [entry.label for entry in client.describe(model=model).classes]
    classification = client.classify(photo, model=model, top_k=5)
    explanation = client.explain(photo, layer=LAYER, class_name=classification.classes[0].class_id, model=model)
    verdict = judge(truth, classification, labels) if truth else None
    return SecondOpinion(len(labels), classification, explanation, verdict)
