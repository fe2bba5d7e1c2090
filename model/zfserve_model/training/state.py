"""The state of a run is one file from which the run can be resumed. It holds the plan and the progress.

The loop saves it, and `zfserve train` resumes from it. The file is read with `weights_only`, never as a pickle.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from zfserve_model.networks import Network, NetworkSpec
from zfserve_model.training.recipe import Recipe, RecipeError
from zfserve_model.training.teacher import TEACHER_CLASSES


class StateError(ValueError):
    """The file of a run's state cannot be used. The message says why."""


@dataclass(frozen=True)
class Plan:
    """Holds everything that decides the outcome of a run. A resumed run must have the same plan, or more epochs.

    Attributes:
        class_ids: the class ids in the order of the logits.
        photos: the number of training photos.
        listing: the digest of these photos by `PhotoFolder.listing`. None if they are not compared.
        start_digest: the sha256 (hex) of the weights file that training starts from. None means random weights.
        freeze_through: the name of the last frozen layer. None means that every layer is trained.
    """

    recipe: Recipe
    network: NetworkSpec
    class_ids: tuple[str, ...]
    photos: int
    start_digest: str | None = None
    freeze_through: str | None = None
    listing: str | None = None

    def document(self) -> dict[str, Any]:
        """Returns the plan as plain JSON values."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    def require_continues(self, earlier: dict[str, Any]) -> None:
        """Checks that this plan equals `earlier`, the `document` of an interrupted run. It may have more epochs.

        Raises:
            RecipeError: the plans differ. The message names every difference.
        """
        ours = flatten_plan(self.document())
        # States of older releases do not have these keys. The values here are what those releases did.
        theirs = {
            "recipe.teacher_sees": "photos",
            "network.removed": [],
            "network.maps": [],
            "listing": ours["listing"],
            **flatten_plan(earlier),
        }
        old_sizes = [stage["size"] for stage in theirs["recipe.stages"] for _ in range(stage["epochs"])]
        if list(self.recipe.epoch_sizes[: len(old_sizes)]) == old_sizes:
            theirs["recipe.stages"] = ours["recipe.stages"]
        changes = [
            "training photos were added, removed, renamed or changed"
            if name == "listing"
            else f"{name} was {theirs.get(name)}, now {ours.get(name)}"
            for name in ours | theirs
            if ours.get(name) != theirs.get(name)
        ]
        if changes:
            raise RecipeError(
                f"the run in that folder has another plan: {'; '.join(changes)}. "
                "Give the same options again (only epochs may be added at the end), or a new --output"
            )


def flatten_plan(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= flatten_plan(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@dataclass(frozen=True)
class EpochResult:
    """Holds one row of the log.

    Accuracies are in [0, 1]. Losses are cross-entropies in nats, and `train_loss` includes the teacher's part. The two
    `train_` figures are measured during training, on augmented photos and with dropout.

    Attributes:
        epoch: the number of the epoch, from 1.
        size: the side of the photos, in pixels.
        rate: the learning rate of the last step.
        val_photos: the number of validation photos that were evaluated.
        images_per_s: the speed of the training steps.
        elapsed_s: the seconds spent in training steps since the start of the run.
        fitted_top1: the accuracy of the finished network on each fourth training photo, measured as on the validation
            photos: unchanged photos and no dropout. None for all epochs but the last, and for runs of earlier releases.
    """

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
    fitted_top1: float | None = None


@dataclass(frozen=True)
class Tally:
    """Sums figures over the steps of the current epoch."""

    loss_sum: float = 0.0
    hits: int = 0
    photos: int = 0
    seconds: float = 0.0

    def add(self, loss: float, hits: int, photos: int, seconds: float) -> "Tally":
        return Tally(self.loss_sum + loss * photos, self.hits + hits, self.photos + photos, self.seconds + seconds)


class TrainingState:
    """Holds everything that must survive an interruption: network, distillation layer, optimiser and position.

    Attributes:
        next_step: the index of the next step. The weights include every step before it.
        results: one result per finished epoch. Its length is the index of the current epoch.
        tally: the sums of the current epoch.
        sessions: every start of the run, as plain JSON objects (see `zfserve_model.training.report`).
    """

    def __init__(self, network: Network, plan: Plan, device: torch.device) -> None:
        recipe = plan.recipe
        self.plan = plan
        self.network: Network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stub
        self.teacher_layer = _teacher_layer(network, recipe.seed).to(device) if recipe.teacher_weight > 0 else None
        self.optimiser = torch.optim.SGD(
            _parameter_groups(network, self.teacher_layer, recipe.weight_decay),
            lr=recipe.peak_rate,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
        )
        self.next_step = 0
        self.elapsed_s = 0.0
        self.results: list[EpochResult] = []
        self.tally = Tally()
        self.sessions: list[dict[str, Any]] = []

    def save(self, file: Path) -> None:
        """Writes the state under a temporary name, then renames it.

        Raises:
            OSError: the state cannot be written, for instance because the disk is full. `file` is unchanged.
        """
        partial = file.with_suffix(".partial")
        document = {
            "network": self.network.state_dict(),
            "teacher_layer": self.teacher_layer.state_dict() if self.teacher_layer else None,
            "optimiser": self.optimiser.state_dict(),
            "next_step": self.next_step,
            "elapsed_s": self.elapsed_s,
            "results": [asdict(result) for result in self.results],
            "tally": asdict(self.tally),
            "sessions": self.sessions,
            "plan": self.plan.document(),
        }
        try:
            torch.save(document, partial)
            partial.replace(file)
        except RuntimeError as error:  # torch's writer raises its own error
            raise OSError(f"{file} cannot be written; is the disk full?") from error
        finally:
            partial.unlink(missing_ok=True)

    def load(self, file: Path) -> None:
        """Loads the state in `file`.

        States of the first release hold no plan, tally or sessions. Then no plan is compared, and the figures of the
        current epoch cover only its remaining steps.

        Raises:
            StateError: the file is not the state of a run, or belongs to another network.
            RecipeError: the run had another plan.
        """
        try:
            saved = torch.load(file, weights_only=True, map_location="cpu")
        except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise StateError(f"{file} is not the state of a training run, or it is truncated") from error
        if not isinstance(saved, dict):
            raise StateError(f"{file} is not the state of a training run")
        if "plan" in saved:
            self.plan.require_continues(saved["plan"])
        try:
            self.network.load_state_dict(saved["network"])
            if self.teacher_layer:
                self.teacher_layer.load_state_dict(saved["teacher_layer"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.next_step, self.elapsed_s = saved["next_step"], saved["elapsed_s"]
            self.results = [EpochResult(**result) for result in saved["results"]]
            self.tally = Tally(**saved.get("tally", {}))
            self.sessions = saved.get("sessions", [])
        except (RuntimeError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"{file} holds the state of another network or recipe; use a new --output") from error

    def count_step(self, loss: float, hits: int, photos: int, seconds: float) -> None:
        """Records that step `next_step` is done."""
        self.next_step += 1
        self.elapsed_s += seconds
        self.tally = self.tally.add(loss, hits, photos, seconds)

    def close_epoch(self, result: EpochResult) -> None:
        self.results.append(result)
        self.tally = Tally()


def _teacher_layer(network: Network, seed: int) -> nn.Linear:
    layer = nn.Linear(network.spec.feature_width, TEACHER_CLASSES)
    bound = network.spec.feature_width**-0.5
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def _parameter_groups(network: Network, teacher_layer: nn.Module | None, decay: float) -> list[dict[str, object]]:
    learning = [p for p in network.parameters() if p.requires_grad]
    learning += list(teacher_layer.parameters()) if teacher_layer else []
    return [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
