"""The training loop trains a network by a recipe, and can be resumed at any step.

`zfserve train` calls it. One step draws a batch, augments it on the device, runs forward and backward, and updates the
weights by SGD. The state is saved every few minutes, at the end, and after an interruption.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from zfserve_model.networks import INPUT_SIZE, Network
from zfserve_model.training.augment import draw_views, normalise, show_views
from zfserve_model.training.periodic_timer import PeriodicTimer
from zfserve_model.training.photos import PhotoBatches
from zfserve_model.training.recipe import Recipe, Schedule, Step
from zfserve_model.training.state import EpochResult, TrainingState
from zfserve_model.training.teacher import Teacher, distillation_loss

EVALUATION_BATCH = 64
VALIDATION_STRIDE = 4
"""To save time, every epoch but the last is measured on each fourth validation photo only."""
FITTED_STRIDE = 4
"""To save time, the finished network is measured on each fourth training photo only."""


class Interrupted(Exception):
    """The run was asked to stop. Its state is saved."""


class Diverged(ArithmeticError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Trainer:
    """Trains one network.

    Attributes:
        recipe: the hyperparameters.
        train: the training photos.
        validation: the validation photos, which are never trained on.
        teacher: gives the soft targets of every step. None if the recipe's `teacher_weight` is 0.
        device: the device of the network.
        autocast: the dtype of matrix products. float32 turns mixed precision off.
        save_to: the file for the state, from which the run can be resumed.
        save_every_s: the seconds between two saves. A save waits for the end of a step or an epoch.
        interrupted: returns True if the run should stop. It is called after every step and every evaluated batch.
        keep_epoch: is called with the network and the number of each finished epoch, from 1, before a state that counts
            this epoch is saved. So no epoch is left out when a run is killed, but one may come twice.
    """

    recipe: Recipe
    train: PhotoBatches
    validation: PhotoBatches
    teacher: Teacher | None
    device: torch.device
    autocast: torch.dtype
    save_to: Path
    save_every_s: float = 180.0
    interrupted: Callable[[], bool] = lambda: False
    keep_epoch: Callable[[Network, int], None] = lambda network, epoch: None

    def run(self, state: TrainingState, on_step: Callable[[Step, float], None]) -> Iterator[EpochResult]:
        """Trains from the position of `state` to the end. Yields after every epoch.

        `on_step` is called with each finished step and its loss. Frozen parameters (`requires_grad` is False) do not
        change, and the running statistics of frozen batch norms do not change either.

        Raises:
            Interrupted: `interrupted` returned True.
            Diverged: the loss is no longer a number. The saved state is from an earlier step.
        """
        schedule = Schedule(self.recipe, len(self.train))
        save_timer = PeriodicTimer(self.save_every_s, at_once=False)
        try:
            while len(state.results) < schedule.epochs:
                for step, loss in self._train_epoch(state, schedule):
                    on_step(step, loss)
                    if save_timer.is_due():
                        state.save(self.save_to)
                    self._check_interrupted()
                result = self._measure_epoch(state, schedule)
                if not math.isfinite(result.val_loss):
                    raise Diverged(f"the validation loss is {result.val_loss}; lower --rate and start again")
                self.keep_epoch(state.network, result.epoch)
                state.close_epoch(result)
                if save_timer.is_due() or result.epoch == schedule.epochs:
                    state.save(self.save_to)
                yield result
        except Interrupted:
            state.save(self.save_to)
            raise

    def _train_epoch(self, state: TrainingState, schedule: Schedule) -> Iterator[tuple[Step, float]]:
        """Runs the remaining steps of the current epoch. Yields each finished step and its loss."""
        epoch = len(state.results)
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.train))
        _set_training_mode(state.network)
        while state.next_step < (epoch + 1) * schedule.steps_per_epoch:
            started = time.monotonic()
            step = schedule.step(state.next_step)
            rows = order[step.batch * self.recipe.batch_size :][: self.recipe.batch_size]
            loss, hits = self._step(state, step, np.sort(rows))  # sorted rows lie closer together on disk
            state.count_step(loss, hits, len(rows), time.monotonic() - started)
            yield step, loss

    def _step(self, state: TrainingState, step: Step, rows: npt.NDArray[np.int64]) -> tuple[float, int]:
        """Takes one optimiser step on the photos `rows`. Returns its loss and the number of correct classifications."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step.index)
        torch.manual_seed(self.recipe.seed * 1_000_003 + step.index)  # dropout draws from the global generator
        pixels, labels = self.train.draw(rows)
        views = draw_views(len(rows), step.size, self.recipe.augmentation, generator)
        images = show_views(pixels, views, step.size)
        with self._mixed_precision():
            features = state.network.head[:-1](pool_trunk(state.network, images))
            logits = state.network.head[-1](features).float()
            loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
            if state.teacher_layer is not None:
                assert self.teacher is not None
                teacher = self.teacher(
                    rows, lambda: images if step.size == INPUT_SIZE else show_views(pixels, views, INPUT_SIZE)
                ).float()
                student = state.teacher_layer(features).float()
                divergence = distillation_loss(student, teacher, self.recipe.teacher_temperature)
                loss = torch.lerp(loss, divergence, self.recipe.teacher_weight)
        if not torch.isfinite(loss):
            raise Diverged(f"the loss became {loss.item()} at step {step.index}; lower --rate and start again")
        for group in state.optimiser.param_groups:
            group["lr"] = step.rate
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        state.optimiser.step()
        return loss.item(), int((logits.argmax(1) == labels).sum())

    def _measure_epoch(self, state: TrainingState, schedule: Schedule) -> EpochResult:
        epoch, tally = len(state.results), state.tally
        last = epoch + 1 == schedule.epochs
        size = schedule.sizes[epoch]
        val_loss, val_top1, val_top5, val_photos = self._evaluate(
            state.network, self.validation, size, every=1 if last else VALIDATION_STRIDE
        )
        return EpochResult(
            epoch=epoch + 1,
            size=size,
            rate=schedule.step(state.next_step - 1).rate,
            # The first release saved no sums after the last step of an epoch.
            train_loss=tally.loss_sum / tally.photos if tally.photos else float("nan"),
            train_top1=tally.hits / tally.photos if tally.photos else float("nan"),
            val_loss=val_loss,
            val_top1=val_top1,
            val_top5=val_top5,
            val_photos=val_photos,
            images_per_s=tally.photos / tally.seconds if tally.seconds else float("nan"),
            elapsed_s=state.elapsed_s,
            fitted_top1=self._evaluate(state.network, self.train, size, FITTED_STRIDE)[1] if last else None,
        )

    @torch.inference_mode()
    def _evaluate(
        self, network: Network, photos: PhotoBatches, size: int, every: int
    ) -> tuple[float, float, float, int]:
        """Returns loss, top-1 and top-5 accuracy, and the number of photos, over each `every`-th of `photos`."""
        network.eval()
        rows = np.arange(0, len(photos), every)
        loss, top1, top5 = 0.0, 0, 0
        for start in range(0, len(rows), EVALUATION_BATCH):
            batch = rows[start : start + EVALUATION_BATCH]
            pixels, labels = photos.draw(batch)
            images = normalise(pixels)
            if size != INPUT_SIZE:
                images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
            images = images.contiguous(memory_format=torch.channels_last)
            with self._mixed_precision():
                logits = network.head(pool_trunk(network, images)).float()
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss += functional.cross_entropy(logits, labels, reduction="sum").item()
            top1, top5 = top1 + int(best[:, 0].sum()), top5 + int(best.sum())
            self._check_interrupted()
        return loss / len(rows), top1 / len(rows), top5 / len(rows), len(rows)

    def _mixed_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast != torch.float32)

    def _check_interrupted(self) -> None:
        if self.interrupted():
            raise Interrupted


def pool_trunk(network: Network, images: Tensor) -> Tensor:
    """Returns the trunk's output, float32 (N, C, S, S), for photos of at least 64 pixels a side.

    S is `NetworkSpec.last_map_side`, 6 unless early layers are removed.

    At 224 pixels this is the network's own trunk. At smaller sizes the last pool adapts its windows, so that its output
    fits the head.
    """
    if images.shape[-1] == INPUT_SIZE:
        pooled: Tensor = network.trunk(images)
        return pooled
    return functional.adaptive_max_pool2d(network.trunk[:-1](images), network.spec.last_map_side)


def _set_training_mode(network: Network) -> None:
    """Sets training mode, but keeps frozen batch norms in evaluation mode, so that their statistics do not change."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and not module.weight.requires_grad:
            module.eval()
