"""The training loop: from a data set and a recipe to trained weights, resumable at any step.

Called by `zfserve train`. One step: draw a batch, augment it on the device, one forward and backward pass, SGD.
The state is written every few minutes and at the end of each epoch, to a temporary name and then renamed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from zfserve_model.networks import INPUT_SIZE, POOL_SIZE, Network
from zfserve_model.training.augment import augment, normalise
from zfserve_model.training.recipe import Recipe, Schedule, Step
from zfserve_model.training.teacher import TEACHER_CLASSES

SAVE_EVERY_S = 180.0
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Split:
    """Photos with their labels: pixels uint8 (N, 224, 224, 3), labels int64 (N,)."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class EpochResult:
    """One row of the log. Shares are in [0, 1]; losses are cross-entropies in nats."""

    epoch: int
    size: int
    rate: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    val_top5: float
    val_photos: int
    images_per_s: float
    elapsed_s: float


class TrainingState:
    """What must survive an interruption: the network, the distillation layer, the optimiser, the position."""

    def __init__(self, network: Network, recipe: Recipe, device: torch.device) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)
        width = network.spec.hidden_width
        self.teacher_layer = nn.Linear(width, TEACHER_CLASSES).to(device) if recipe.teacher_weight > 0 else None
        self.optimiser = torch.optim.SGD(
            _parameter_groups(network, self.teacher_layer, recipe.weight_decay),
            lr=recipe.peak_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
        )
        self.next_step = 0
        self.elapsed_s = 0.0
        self.results: list[EpochResult] = []

    def save(self, file: Path) -> None:
        partial = file.with_suffix(".partial")
        torch.save(
            {
                "network": self.network.state_dict(),
                "teacher_layer": self.teacher_layer.state_dict() if self.teacher_layer else None,
                "optimiser": self.optimiser.state_dict(),
                "next_step": self.next_step,
                "elapsed_s": self.elapsed_s,
                "results": [vars(result) for result in self.results],
            },
            partial,
        )
        partial.replace(file)

    def load(self, file: Path) -> None:
        """Raises ValueError where the file holds the state of another network."""
        saved = torch.load(file, weights_only=True, map_location="cpu")
        try:
            self.network.load_state_dict(saved["network"])
            if self.teacher_layer:
                self.teacher_layer.load_state_dict(saved["teacher_layer"])
            self.optimiser.load_state_dict(saved["optimiser"])
        except (RuntimeError, AttributeError, KeyError) as error:
            raise ValueError(f"{file} holds the state of another network or recipe; use a new --output") from error
        self.next_step = saved["next_step"]
        self.elapsed_s = saved["elapsed_s"]
        self.results = [EpochResult(**result) for result in saved["results"]]


def _parameter_groups(network: Network, teacher_layer: nn.Module | None, decay: float) -> list[dict[str, object]]:
    trained = [p for p in network.parameters() if p.requires_grad]
    trained += list(teacher_layer.parameters()) if teacher_layer else []
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class Trainer:
    """One run, ready to go.

    Attributes:
        recipe: the numbers.
        train: photos to learn from.
        validation: photos to measure on, never learned from.
        teacher_scores: float16 (N, 1000), or None.
        device: where the network lives.
        autocast: dtype of the matrix work; float32 turns mixed precision off.
        save_to: file of the resumable state.
        frozen: names of layers whose batch statistics must not move.
    """

    recipe: Recipe
    train: Split
    validation: Split
    teacher_scores: Tensor | None
    device: torch.device
    autocast: torch.dtype
    save_to: Path
    frozen: frozenset[str] = frozenset()

    def run(self, state: TrainingState, on_step: Callable[[Step, float], None]) -> Iterator[EpochResult]:
        """Train from where `state` stands to the end, yielding after every epoch.

        `on_step` gets each finished step and its loss.
        """
        schedule = Schedule(self.recipe, len(self.train.labels))
        last_save = time.monotonic()
        while state.next_step < len(schedule):
            first = schedule.step(state.next_step)
            order = _shuffled(len(self.train.labels), self.recipe.seed, first.epoch)
            started, loss_sum, right, seen = time.monotonic(), 0.0, 0, 0
            self._set_training_mode(state.network)
            for index in range(state.next_step, (first.epoch + 1) * schedule.steps_per_epoch):
                step = schedule.step(index)
                rows = order[step.batch * self.recipe.batch_size :][: self.recipe.batch_size]
                loss, hits = self._step(state, step, np.sort(rows))
                loss_sum, right, seen = loss_sum + loss * len(rows), right + hits, seen + len(rows)
                state.next_step = index + 1
                on_step(step, loss)
                if time.monotonic() - last_save > SAVE_EVERY_S:
                    state.save(self.save_to)
                    last_save = time.monotonic()
            train_s = time.monotonic() - started
            state.elapsed_s += train_s
            last_epoch = first.epoch + 1 == schedule.epochs
            measured = self._evaluate(state.network, first.size, every=1 if last_epoch else 4)
            result = EpochResult(
                first.epoch + 1, first.size, step.rate, loss_sum / seen, right / seen, *measured,
                images_per_s=seen / train_s, elapsed_s=state.elapsed_s,
            )  # fmt: skip
            state.results.append(result)
            state.save(self.save_to)
            yield result

    def _set_training_mode(self, network: Network) -> None:
        network.train()
        for name in self.frozen:
            network.trunk.get_submodule(name).eval()

    def _step(self, state: TrainingState, step: Step, rows: npt.NDArray[np.int64]) -> tuple[float, int]:
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step.index)
        torch.manual_seed(self.recipe.seed * 1_000_003 + step.index)  # dropout draws from the global generator
        pixels = torch.from_numpy(self.train.pixels[rows]).to(self.device, non_blocking=True)
        labels = torch.from_numpy(self.train.labels[rows]).to(self.device)
        images = augment(pixels, step.size, self.recipe.augmentation, generator)
        for group in state.optimiser.param_groups:
            group["lr"] = step.rate
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast != torch.float32):
            features = state.network.head[:-1](pool_trunk(state.network, images))
            logits = state.network.head[-1](features).float()
            loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
            if state.teacher_layer is not None:
                assert self.teacher_scores is not None
                student = state.teacher_layer(features).float()
                loss = self._distil(loss, student, self.teacher_scores[rows].to(self.device).float())
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        state.optimiser.step()
        if not torch.isfinite(loss):
            raise ArithmeticError(f"the loss became {loss.item()} at step {step.index}; lower --rate and start anew")
        return loss.item(), int((logits.argmax(1) == labels).sum())

    def _distil(self, loss: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        temperature, share = self.recipe.teacher_temperature, self.recipe.teacher_weight
        divergence = functional.kl_div(
            functional.log_softmax(student / temperature, dim=1),
            functional.log_softmax(teacher / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        # Hinton et al. 2015, section 2: gradients of soft targets scale as 1 / T^2.
        return (1 - share) * loss + share * temperature**2 * divergence

    @torch.inference_mode()
    def _evaluate(self, network: Network, size: int, every: int) -> tuple[float, float, float, int]:
        """Loss, top-1, top-5 and the number of photos, over each `every`-th photo of the validation split."""
        network.eval()
        rows = np.arange(0, len(self.validation.labels), every)
        loss, top1, top5 = 0.0, 0, 0
        for start in range(0, len(rows), EVALUATION_BATCH):
            batch = rows[start : start + EVALUATION_BATCH]
            pixels = torch.from_numpy(self.validation.pixels[batch]).to(self.device)
            labels = torch.from_numpy(self.validation.labels[batch]).to(self.device)
            images = normalise(pixels)
            if size != INPUT_SIZE:
                images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast != torch.float32):
                logits = network.head(pool_trunk(network, images)).float()
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss += functional.cross_entropy(logits, labels, reduction="sum").item()
            top1, top5 = top1 + int(best[:, 0].sum()), top5 + int(best.sum())
        return loss / len(rows), top1 / len(rows), top5 / len(rows), len(rows)


def pool_trunk(network: Network, images: Tensor) -> Tensor:
    """The trunk's output, (N, C, 6, 6), for photos of any size from 64 pixels.

    At 224 pixels this is the network itself; below, the last pool adapts its windows so that the head fits.
    """
    if images.shape[-1] == INPUT_SIZE:
        pooled: Tensor = network.trunk(images)
        return pooled
    return functional.adaptive_max_pool2d(network.trunk[:-1](images), POOL_SIZE)


def _shuffled(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)
