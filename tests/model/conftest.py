"""Provides toy photos, a toy run of training, and an export by either of torch's exporters."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from fakes.toy_run import ToyRun, write_toy_photos
from torch import nn
from zfserve_model.training.dataset import Split, decode_photos, list_splits
from zfserve_model.training.recipe import Recipe, Stage


@pytest.fixture(scope="session")
def toy_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of toy photos. Tests only read it."""
    folder = tmp_path_factory.mktemp("photos")
    write_toy_photos(folder)
    return folder


@pytest.fixture
def toy_run(toy_photos: Path, tmp_path: Path) -> ToyRun:
    recipe = Recipe(stages=(Stage(64, 2), Stage(80, 1)), batch_size=4)
    train, validation = (
        Split(decode_photos(photos, tmp_path / "cache"), photos.labels) for photos in list_splits(toy_photos)
    )
    return ToyRun(recipe, train, validation, tmp_path)


@pytest.fixture
def export() -> Callable[[nn.Module, str], onnx.ModelProto]:
    """Returns a function from a module in evaluation mode and "new" or "old" to a model of images (N, 3, 8, 8)."""
    return lambda module, exporter: export_module(module, exporter, 8)


def export_module(
    module: nn.Module, exporter: str, size: int, *, free_batch: bool = True, opset: int | None = None
) -> onnx.ModelProto:
    """Returns a module as an ONNX model, by the new exporter of torch or by the old one. The batch is free, or one.

    `opset` is the version of ONNX's operators. None stands for the exporter's own choice.
    """
    images, written = torch.zeros(2 if free_batch else 1, 3, size, size), io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if exporter == "new":
            shapes = ({0: torch.export.Dim("N", min=1)},) if free_batch else None
            options: dict[str, Any] = {
                "dynamo": True,
                "dynamic_shapes": shapes,
                "verbose": False,
                "opset_version": opset,
            }
            program = torch.onnx.export(module.eval(), (images,), **options)
            assert program is not None
            model: onnx.ModelProto = program.model_proto
            return model
        axes = {"x": {0: "N"}, "y": {0: "N"}} if free_batch else None
        names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
        options = names | {"dynamo": False, "opset_version": opset}
        torch.onnx.export(module.eval(), (images,), written, **options)  # type: ignore[arg-type]
    return onnx.load_from_string(written.getvalue())
