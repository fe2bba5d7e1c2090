"""A toy training run has two classes of photos that differ in colour, and three steps an epoch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.training.dataset import Split
from zfserve_model.training.loop import Trainer
from zfserve_model.training.photos import PhotoBatches
from zfserve_model.training.recipe import Recipe
from zfserve_model.training.state import Plan, TrainingState

COLOURS = {"n01440764": (210, 60, 40), "n03394916": (40, 60, 210)}
CPU = torch.device("cpu")


def write_toy_photos(folder: Path) -> None:
    """Writes six photos of each class into train/ and three into val/: noisy, 72 x 64 pixels, and always the same."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for class_id, colour in COLOURS.items():
            (folder / split / class_id).mkdir(parents=True)
            for index in range(count):
                pixels = np.asarray(colour) + generator.integers(-40, 41, (64, 72, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / class_id / f"{index}.png")


@dataclass(frozen=True)
class ToyRun:
    """Holds a training run of three steps an epoch. A test can start it many times, always from the same weights."""

    recipe: Recipe
    train: Split
    validation: Split
    folder: Path

    def with_recipe(self, **changes: Any) -> "ToyRun":
        return replace(self, recipe=replace(self.recipe, **changes))

    def state(self, spec: NetworkSpec | None = None) -> TrainingState:
        spec = spec or NetworkSpec("zfnet-fig3", classes=2, hidden_width=8, batch_norm=True)
        network = build_network(spec, torch.Generator().manual_seed(self.recipe.seed))
        return TrainingState(network, Plan(self.recipe, spec, tuple(COLOURS), len(self.train.labels)), CPU)

    def trainer(self, **changes: Any) -> Trainer:
        """Returns a trainer that saves its state to `folder / "state.pt"`."""
        trainer = Trainer(
            self.recipe,
            PhotoBatches(self.train, CPU),
            PhotoBatches(self.validation, CPU),
            None,
            CPU,
            torch.float32,
            self.folder / "state.pt",
        )
        return replace(trainer, **changes)
