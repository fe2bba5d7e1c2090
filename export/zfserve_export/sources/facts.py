"""This module completes what a source says about its input and its classes with what the user said.

What nobody said is asked for in one sentence, which names the options. The modules of this package call it.
"""

from collections.abc import Mapping, Sequence

from zfserve_model.labels import imagenet_labels
from zfserve_model.preprocessing import PRESETS, Preprocessing, PreprocessingFacts, complete

from zfserve_export.sources.errors import SourceError

IMAGENET_CLASSES = 1000
BACKGROUND = ("n00000000", "background")
"""The class that many networks of TensorFlow have before ImageNet's thousand."""

_WHOLE_PRESETS = [name for name, facts in PRESETS.items() if "resize" in facts]
_OPTIONS = {
    "height": "--size HxW",
    "mean": "--mean R G B",
    "std": "--std R G B",
    "resize": "--resize squash|crop",
    "interpolation": "--interpolation bilinear|bicubic",
}


def known_facts(of_source: PreprocessingFacts, stated: PreprocessingFacts) -> PreprocessingFacts:
    """Returns the facts of both. What the user stated wins, and another size changes the shorter side with it."""
    facts = of_source | stated
    if "height" in stated and "shorter_side" not in stated:
        facts.pop("shorter_side", None)
    return facts


def require_facts(
    description: str, facts: PreprocessingFacts, labels: Mapping[str, str] | None, classes: int | None = None
) -> None:
    """Asks for everything that a bundle needs and nobody said, at once.

    Args:
        description: the source.
        facts: what is known about the preprocessing.
        labels: the labels. None if there are none.
        classes: the number of classes. None if it is not known yet.

    Raises:
        SourceError: something is missing.
    """
    options = [option for key, option in _OPTIONS.items() if key not in facts]
    wanting = [_OPTIONS[key] for key in ("mean", "std", "resize", "interpolation")]
    if all(option in options for option in wanting):
        preset = f"--preprocessing {'|'.join(_WHOLE_PRESETS)} (or {', '.join(wanting)})"
        options = [*(option for option in options if option not in wanting), preset]
    if labels is None:
        options.append(_labels_option(classes))
    if options:
        raise SourceError(f"{description} does not say all that a bundle needs; add {_enumerated(options)}")


def _labels_option(classes: int | None) -> str:
    if classes in (IMAGENET_CLASSES, IMAGENET_CLASSES + 1):
        return "--labels imagenet (or --labels FILE)"
    return f"--labels FILE (with {classes or 'the'} labels, one a line)"


def complete_facts(description: str, facts: PreprocessingFacts) -> Preprocessing:
    """Returns the preprocessing of facts that are whole.

    Raises:
        SourceError: a value is impossible.
    """
    try:
        return complete(facts)
    except ValueError as error:
        raise SourceError(f"the preprocessing of {description} is impossible: {error}") from error


def classes_of(description: str, labels: Mapping[str, str], count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the ids and the labels of `count` classes.

    Raises:
        SourceError: there are more or fewer labels.
    """
    if count == IMAGENET_CLASSES + 1 and tuple(labels) == tuple(imagenet_labels()):
        labels = dict([BACKGROUND]) | dict(labels)
    if len(labels) != count:
        raise SourceError(
            f"{description} has {count} classes, and the number of labels is {len(labels)}; give one label for each "
            "class, in the order of the network's scores, with --labels"
        )
    return tuple(labels), tuple(labels.values())


def _enumerated(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} and {options[-1]}"
