"""Asks the service for everything that figure 5 shows of one photo."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

from zfserve.client import Client
from zfserve.model_description import ModelDescription
from zfserve.studies import Border, FeatureDistance, Resampling, TransformKind, TransformStep

from zfserve_studies.patience import Patience
from zfserve_studies.run_folder import require_same_model

KINDS: tuple[TransformKind, ...] = get_args(TransformKind)

FLIPS: tuple[TransformKind, ...] = ("horizontal-flip", "vertical-flip")

DEFAULT_KINDS: tuple[TransformKind, ...] = ("vertical-translation", "scale", "rotation")
"""The three kinds of figure 5."""

GROUPS: dict[str, tuple[TransformKind, ...]] = {
    "translation": ("vertical-translation", "horizontal-translation"),
    "flips": FLIPS,
    "all": KINDS,
}
"""Names for several kinds together."""

EXAMPLES = 5
"""So many steps of a sweep are kept as pictures, and so many photos are shown, as in the paper."""


@dataclass(frozen=True)
class InvarianceOptions:
    """Holds what the user chose. Each attribute but `kinds` is the argument of `Client.transform` with the same name.

    Attributes:
        kinds: the kinds of transformation.
    """

    kinds: tuple[TransformKind, ...]
    class_name: str
    low_layer: str
    border: Border
    resampling: Resampling


@dataclass(frozen=True)
class Example:
    """Holds one transformed input.

    Attributes:
        step: the step, in the unit of its kind.
        png: the input as a PNG file.
    """

    step: float
    png: bytes


@dataclass(frozen=True)
class Sweep:
    """Holds the answers for all steps of one kind, without their pictures.

    Attributes:
        kind: the kind.
        steps: the answers, at least one, in the order of the steps.
        examples: some of the pictures. Empty if none were asked for.
    """

    kind: TransformKind
    steps: tuple[TransformStep, ...]
    examples: tuple[Example, ...]

    @property
    def untouched(self) -> TransformStep:
        """Returns the step that changes least. It is the photo itself where the sweep has it."""
        return min(self.steps, key=lambda each: change_size(self.kind, each.step))

    def kept(self) -> list[bool]:
        """Returns for each step that changes something if the most probable label is that of the untouched photo."""
        untouched = self.untouched
        return [each.best.index == untouched.best.index for each in self.steps if change_size(self.kind, each.step) > 0]


@dataclass(frozen=True)
class SweptPhoto:
    """Holds all sweeps of one photo, by kind. They are in the order of the options."""

    name: str
    sweeps: dict[TransformKind, Sweep]


@dataclass(frozen=True)
class InvarianceStudy:
    """Sweeps photos with the same options and the same model.

    Attributes:
        client: calls the service.
        model: the model, as the service described it at the start.
        options: what the user chose.
        patience: waits while the server restarts.
    """

    client: Client
    model: ModelDescription
    options: InvarianceOptions
    patience: Patience

    def sweep(self, photo: Path, *, pictures: bool, progress: Callable[[TransformKind], None]) -> SweptPhoto:
        """Sweeps one photo through all kinds. If the server restarts, the kind in work is begun again.

        Args:
            photo: the photo.
            pictures: True to keep examples.
            progress: gets each kind when it is done.

        Raises:
            ZfserveError: a call failed.
            CannotContinue: the server holds another model now.
        """
        sweeps: dict[TransformKind, Sweep] = {}
        for kind in self.options.kinds:
            steps = self.patience.call(partial(self._steps, photo, kind, pictures))
            require_same_model(self.model.model, steps[0].model)
            bare = tuple(replace(each, picture_png=None) for each in steps)
            sweeps[kind] = Sweep(kind, bare, _examples(steps))
            progress(kind)
        return SweptPhoto(photo.name, sweeps)

    def _steps(self, photo: Path, kind: TransformKind, pictures: bool) -> list[TransformStep]:
        options, identity = self.options, self.model.model
        return [
            *self.client.transform(
                photo,
                kind,
                class_name=options.class_name,
                low_layer=options.low_layer,
                border=options.border,
                resampling=options.resampling,
                pictures=pictures,
                model=identity.name,
                version=identity.version,
            )
        ]


def change_size(kind: TransformKind, step: float) -> float:
    """Returns how far a step is from changing nothing, in the unit of its kind. Angles count the shorter way round."""
    match kind:
        case "scale" | "brightness":
            return abs(step - 1)
        case "rotation" | "hue":
            return min(step % 360, -step % 360)
    return abs(step)


def distances(
    steps: Sequence[TransformStep], choose: Callable[[TransformStep], FeatureDistance | None]
) -> list[FeatureDistance]:
    """Returns the distance of one layer at each step. Empty if the network has no such layer."""
    return [distance for each in steps if (distance := choose(each)) is not None]


def _examples(steps: Sequence[TransformStep]) -> tuple[Example, ...]:
    """Returns pictures that are spread evenly over the steps, the first and the last among them."""
    last = len(steps) - 1
    chosen = dict.fromkeys(round(at * last / (EXAMPLES - 1)) for at in range(EXAMPLES))
    pairs = [(steps[at].step, steps[at].picture_png) for at in chosen]
    return tuple(Example(step, png) for step, png in pairs if png is not None)
