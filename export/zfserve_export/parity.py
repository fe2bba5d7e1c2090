"""This module measures how far an exported graph differs from the PyTorch network.

`exporter` and `measurement` call it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from zfserve_engines.contract import Engine, EngineOutputs
from zfserve_model.checkpoint import Checkpoint
from zfserve_runtime.bundle import InputSpec, ParityEntry, Precision

from zfserve_export.onnx_graph import LARGEST_HALF

InputKind = Literal["photos", "noise"]

LARGEST_ACTIVATION = LARGEST_HALF / 4
"""The largest activation that a network may have if it is exported to float16. It is below the limit of float16,
because other photos may cause larger activations."""

_BATCH = 8

_REMEDIES: dict[Precision, str] = {"fp32": "allow more with --tolerance", "fp16": "leave it out with --no-fp16"}


class ParityError(ValueError):
    """The exported graph does not compute what the network computes. The message gives the difference."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Holds inputs of one kind, and the PyTorch network's outputs for them.

    Attributes:
        pixels: the inputs, uint8 (N, H, W, 3).
        expected: the outputs of the PyTorch network.
    """

    kind: InputKind
    pixels: NDArray[np.uint8]
    expected: EngineOutputs


def make_reference(checkpoint: Checkpoint, kind: InputKind, pixels: NDArray[np.uint8]) -> Reference:
    """Runs the PyTorch network on `pixels`, uint8 (N, H, W, 3)."""
    return Reference(kind, pixels, network_outputs(checkpoint, pixels))


def network_outputs(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> EngineOutputs:
    """Returns the PyTorch network's outputs for `pixels`, uint8 (N, H, W, 3).

    It normalises as training does, and not as the exported graph does, so that a mistake there shows as a difference.
    """
    parts = []
    with torch.inference_mode():
        for images in _normalised(checkpoint, pixels):
            logits, features = checkpoint.network.forward_with_features(images)
            parts.append(EngineOutputs(logits.softmax(dim=1).numpy(), features.numpy()))
    return _joined(parts)


def require_half_range(checkpoint: Checkpoint, reference: Reference) -> None:
    """Checks every activation of the reference's inputs against `LARGEST_ACTIVATION`.

    Running the fp16 graph would not show an overflow: ONNX Runtime's CPU kernels keep float32 between its nodes.

    Raises:
        ParityError: an activation is too close to the limit of float16, or is not a number.
    """
    network = checkpoint.network
    with torch.inference_mode():
        for activations in _normalised(checkpoint, reference.pixels):
            for name, layer in (*network.trunk.named_children(), *network.head.named_children()):
                activations = layer(activations)
                largest = float(activations.abs().max())
                # Written so that a NaN fails.
                if not largest <= LARGEST_ACTIVATION:
                    raise ParityError(
                        f"{name} gives activations of {largest:.3g} for {reference.kind}, too close to "
                        f"the largest float16, {LARGEST_HALF:.0f} (at most {LARGEST_ACTIVATION:.0f} is allowed); "
                        "leave out the fp16 file with --no-fp16"
                    )


def noise_images(spec: InputSpec, count: int) -> NDArray[np.uint8]:
    """Returns uniform noise, uint8 (count, H, W, 3), the same at every call. No photo resembles it."""
    return np.random.default_rng(0).integers(0, 256, (count, spec.height, spec.width, 3), dtype=np.uint8)


def run_all(engine: Engine, pixels: NDArray[np.uint8]) -> EngineOutputs:
    """Runs the engine on `pixels`, uint8 (N, H, W, 3), for any N, in the largest batches that it takes."""
    size = engine.info.max_batch_size
    return _joined([engine.run(pixels[start : start + size]) for start in range(0, len(pixels), size)])


def compare(precision: Precision, reference: Reference, actual: EngineOutputs) -> ParityEntry:
    """Returns the parity figures for the manifest."""
    expected = reference.expected.probabilities
    return ParityEntry(
        precision=precision,
        inputs=reference.kind,
        count=len(expected),
        max_difference=float(np.abs(expected - actual.probabilities).max()),
        top1_agreement=float((expected.argmax(axis=1) == actual.probabilities.argmax(axis=1)).mean()),
    )


def require_parity(precision: Precision, reference: Reference, actual: EngineOutputs, tolerance: float) -> None:
    """Checks probabilities, and features relative to the largest feature, against `tolerance`.

    Raises:
        ParityError: a value differs by more, or is not a number.
    """
    for output, expected, found in (
        ("probability", reference.expected.probabilities, actual.probabilities),
        ("feature", reference.expected.features, actual.features),
    ):
        scale = max(1.0, float(np.abs(expected).max()))
        difference = float(np.abs(expected - found).max()) / scale
        # Written so that a NaN fails.
        if not difference <= tolerance:
            raise ParityError(
                f"the {precision} graph's {output} differs from the network's by {difference:.2g} on {len(expected)} "
                f"{reference.kind}, and {tolerance:.2g} is allowed ({_REMEDIES[precision]}); no bundle was written"
            )


def _normalised(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> Iterator[Tensor]:
    """Normalises `pixels`, uint8 (N, H, W, 3). Yields them in batches, float32 (n, 3, H, W)."""
    mean, std = (torch.tensor(values) for values in (checkpoint.preprocessing.mean, checkpoint.preprocessing.std))
    for start in range(0, len(pixels), _BATCH):
        images = (torch.from_numpy(pixels[start : start + _BATCH]).float() / 255 - mean) / std
        yield images.permute(0, 3, 1, 2)


def _joined(parts: list[EngineOutputs]) -> EngineOutputs:
    return EngineOutputs(
        np.concatenate([part.probabilities for part in parts]), np.concatenate([part.features for part in parts])
    )
