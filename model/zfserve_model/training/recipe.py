"""The recipe holds the hyperparameters of a run. The schedule gives each step its photo size and learning rate."""

import math
from dataclasses import dataclass, field
from itertools import accumulate

from zfserve_model.networks import INPUT_SIZE
from zfserve_model.training.augment import Augmentation
from zfserve_model.training.teacher import TeacherSees

SMALLEST_SIZE = 64
"""The smallest side of training photos, in pixels. Smaller photos would give last maps below 3x3."""


class RecipeError(ValueError):
    """The run cannot be done as asked. The message says what to change."""


@dataclass(frozen=True)
class Stage:
    """Describes `epochs` passes over the data with photos of `size` x `size` pixels."""

    size: int
    epochs: int


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Parses stages. `"128:16,224:3"` means sixteen epochs at 128 pixels, then three at 224.

    Raises:
        RecipeError: the text is not of that form, or does not end at the size that is served.
    """
    try:
        stages = tuple(Stage(*(int(number) for number in part.split(":"))) for part in text.split(","))
    except (TypeError, ValueError):
        raise RecipeError(f"stages {text!r} must be SIZE:EPOCHS pairs, as in 128:16,224:3") from None
    if stages[-1].size != INPUT_SIZE:
        raise RecipeError(f"stages {text!r}: the last must be at {INPUT_SIZE} pixels, the size that is served")
    return stages


@dataclass(frozen=True)
class Recipe:
    """Holds every number that decides the outcome of a run, apart from the data and the network.

    Attributes:
        stages: the photo sizes, in order. The learning rate follows one cosine over all stages.
        batch_size: the number of photos in a step, at least 2.
        peak_rate: the highest learning rate. The run reaches it after the share `warmup`.
        warmup: the share of the run in which the rate rises linearly from 0, in [0, 1).
        momentum: the momentum of SGD, with Nesterov's correction, in [0, 1).
        weight_decay: the decay of the weights of convolutions and linear layers. Biases and norms have none.
        label_smoothing: the share of the target that is spread over all classes.
        teacher_weight: the share of the loss that comes from the teacher, in [0, 1]. 0 trains without a teacher.
        teacher_sees: "photos" if the teacher scores each photo once, or "views" if it scores every augmented photo that
            the student sees.
        teacher_temperature: the number that divides the logits of teacher and student.
        seed: the random seed. Step s depends on (seed, s) only, so a resumed run repeats the interrupted one.
        augmentation: the bounds of the random crops, flips and light.

    Raises:
        RecipeError: a number is out of its range. The message names all such numbers.
    """

    stages: tuple[Stage, ...] = (Stage(128, 16), Stage(224, 3))
    batch_size: int = 64
    peak_rate: float = 0.03
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    teacher_weight: float = 0.0
    teacher_sees: TeacherSees = "photos"
    teacher_temperature: float = 2.0
    seed: int = 1
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        faults = [
            text
            for text, holds in (
                (f"each stage needs {SMALLEST_SIZE} to {INPUT_SIZE} pixels and at least one epoch", self._stages_run()),
                ("the batch size must be at least 2, for batch norm", self.batch_size >= 2),
                ("the peak rate must be above 0", self.peak_rate > 0),
                ("warm-up must be in [0, 1)", 0 <= self.warmup < 1),
                ("momentum must be in [0, 1)", 0 <= self.momentum < 1),
                ("weight decay must not be negative", self.weight_decay >= 0),
                ("label smoothing must be in [0, 1)", 0 <= self.label_smoothing < 1),
                ("the teacher's weight must be in [0, 1]", 0 <= self.teacher_weight <= 1),
                ("the teacher's temperature must be above 0", self.teacher_temperature > 0),
                ("the seed must be in [0, 2^32)", 0 <= self.seed < 2**32),
            )
            if not holds
        ]
        if faults:
            raise RecipeError("; ".join(faults))

    @property
    def epoch_sizes(self) -> tuple[int, ...]:
        """Returns the side of the photos in each epoch, in pixels."""
        return tuple(stage.size for stage in self.stages for _ in range(stage.epochs))

    def _stages_run(self) -> bool:
        sizes_fit = all(SMALLEST_SIZE <= stage.size <= INPUT_SIZE for stage in self.stages)
        return bool(self.stages) and sizes_fit and all(stage.epochs >= 1 for stage in self.stages)


@dataclass(frozen=True)
class Step:
    """Describes one optimiser step of the run.

    Attributes:
        index: the position in the run, from 0.
        epoch, batch: the epoch, and the batch within it, both from 0.
        size: the side of its photos, in pixels.
        rate: the learning rate.
    """

    index: int
    epoch: int
    size: int
    batch: int
    rate: float


class Schedule:
    """Lists the steps of a run.

    The cosine of the learning rate advances with the pixels seen, not with the steps. So the few expensive epochs at
    full size still get a rate that is high enough for the network to adapt to that size.
    """

    def __init__(self, recipe: Recipe, photos: int) -> None:
        self.steps_per_epoch = max(1, photos // recipe.batch_size)
        self.sizes = recipe.epoch_sizes
        self._recipe = recipe
        self._epoch_starts = [0, *accumulate(size**2 * self.steps_per_epoch for size in self.sizes)]

    def __len__(self) -> int:
        return len(self.sizes) * self.steps_per_epoch

    @property
    def epochs(self) -> int:
        return len(self.sizes)

    @property
    def total_work(self) -> int:
        """Returns the work of the run: the pixels of one photo, summed over all steps. Time is proportional to it."""
        return self._epoch_starts[-1]

    def work_before(self, index: int) -> int:
        """Returns the part of `total_work` that is done when step `index` begins."""
        epoch, batch = divmod(index, self.steps_per_epoch)
        return self._epoch_starts[epoch] + (batch * self.sizes[epoch] ** 2 if batch else 0)

    def step(self, index: int) -> Step:
        epoch, batch = divmod(index, self.steps_per_epoch)
        return Step(index, epoch, self.sizes[epoch], batch, self._rate(self.work_before(index) / self.total_work))

    def _rate(self, progress: float) -> float:
        warmup, peak = self._recipe.warmup, self._recipe.peak_rate
        if progress < warmup:
            return peak * (progress + 1e-3) / (warmup + 1e-3)
        return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
