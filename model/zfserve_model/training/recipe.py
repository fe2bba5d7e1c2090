"""What a training run does, as plain data, and the learning rate it gives each step."""

import math
from dataclasses import dataclass, field

from zfserve_model.training.augment import Augmentation


@dataclass(frozen=True)
class Stage:
    """`epochs` passes over the data at photos of `size` x `size` pixels."""

    size: int
    epochs: int


def parse_stages(text: str) -> tuple[Stage, ...]:
    """`"128:16,224:3"` is sixteen epochs at 128 pixels, then three at 224.

    Raises:
        ValueError: the text is not of that form, or the last stage is not at 224 pixels.
    """
    try:
        stages = tuple(Stage(*(int(number) for number in part.split(":"))) for part in text.split(","))
    except (TypeError, ValueError):
        raise ValueError(f"stages {text!r} must be SIZE:EPOCHS pairs, as in 128:16,224:3") from None
    if any(stage.epochs < 1 or stage.size < 64 for stage in stages):
        raise ValueError(f"stages {text!r}: sizes must be at least 64 pixels and epochs at least 1")
    if stages[-1].size != 224:
        raise ValueError(f"stages {text!r}: the last stage must be at 224, the size that is served")
    return stages


@dataclass(frozen=True)
class Recipe:
    """Every number that decides the outcome of a run, apart from the data and the network.

    Attributes:
        stages: progressive image size; the learning rate follows a cosine over all of them together.
        batch_size: photos a step.
        peak_rate: highest learning rate, reached after `warmup` of the run.
        warmup: share of the run in which the rate rises linearly from 0, in [0, 1).
        momentum: of SGD with Nesterov's correction.
        weight_decay: on weights of convolutions and linear layers only.
        label_smoothing: share of the target spread over all classes.
        teacher_weight: share of the loss that comes from the teacher, in [0, 1]; 0 trains without one.
        teacher_temperature: both sides' logits are divided by it.
        seed: all randomness of step s comes from (seed, s), so a resumed run repeats the interrupted one.
    """

    stages: tuple[Stage, ...] = (Stage(128, 16), Stage(224, 3))
    batch_size: int = 64
    peak_rate: float = 0.03
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    teacher_weight: float = 0.0
    teacher_temperature: float = 2.0
    seed: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Step:
    """One optimiser step: where it stands in the run."""

    index: int
    epoch: int
    size: int
    batch: int
    rate: float


class Schedule:
    """The steps of a run. The cosine advances by pixels seen, not by steps: the few, dear epochs at full size then
    get a rate high enough to adapt to that size, instead of the last percent of the curve."""

    def __init__(self, recipe: Recipe, photos: int) -> None:
        self.steps_per_epoch = max(1, photos // recipe.batch_size)
        self._recipe = recipe
        self._epoch_sizes = [stage.size for stage in recipe.stages for _ in range(stage.epochs)]
        self._total = sum(size**2 for size in self._epoch_sizes) * self.steps_per_epoch

    def __len__(self) -> int:
        return len(self._epoch_sizes) * self.steps_per_epoch

    @property
    def epochs(self) -> int:
        return len(self._epoch_sizes)

    def step(self, index: int) -> Step:
        epoch, batch = divmod(index, self.steps_per_epoch)
        size = self._epoch_sizes[epoch]
        seen = sum(size**2 for size in self._epoch_sizes[:epoch]) * self.steps_per_epoch + batch * size**2
        return Step(index, epoch, size, batch, self._rate(seen / self._total))

    def _rate(self, progress: float) -> float:
        warmup, peak = self._recipe.warmup, self._recipe.peak_rate
        if progress < warmup:
            return peak * (progress + 1e-3) / (warmup + 1e-3)
        return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
