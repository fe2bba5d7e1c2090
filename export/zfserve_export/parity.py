"""This module measures how far an exported graph differs from its source. `exporter` and `measurement` call it.

The reference is the source's own PyTorch module, or else the user's file in ONNX Runtime before it was wrapped. Both
get images that NumPy normalises as training does, and not as the wrapped graph does, so that a mistake there shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from zfserve_engines.contract import Engine, EngineOutputs
from zfserve_model.graph.execution import move_graph, run
from zfserve_model.graph.graph import Graph
from zfserve_model.importing.interface import FEATURES
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import GRAPH_INPUT, InputSpec, ParityEntry, Precision

from zfserve_export.onnx_session import open_session, run_session
from zfserve_export.onnx_wrap import WrappedNetwork
from zfserve_export.sources.source import Source

InputKind = Literal["photos", "noise"]
Floats = NDArray[np.float32]

_BATCH = 8

_REMEDIES: dict[Precision, str] = {"fp32": "allow more with --tolerance", "fp16": "leave it out with --no-fp16"}

_ROUNDING_FACTOR = 8
"""Two runtimes that sum in other orders may differ by this many times the difference between float32 and float64."""


class ParityError(ValueError):
    """The exported graph does not compute what the network computes. The message gives the difference."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Holds inputs of one kind, and the outputs that they must give.

    Attributes:
        pixels: the inputs, uint8 (N, H, W, 3).
        expected: the outputs. Their features are those of the fp32 graph.
    """

    kind: InputKind
    pixels: NDArray[np.uint8]
    expected: EngineOutputs


@dataclass(frozen=True, eq=False)
class ParityCheck:
    """Compares the fp32 graph with its source and with its import into PyTorch.

    Attributes:
        source: the source.
        wrapped: the graph of `model.onnx`.
        graph: the same file as the worker reads it.
        deepest: the name of the deepest layer that the worker can compute. None if it can compute the whole network, or
            no layer.
        whole: True if the worker can compute the whole network.
        tolerance: the largest difference of a logit or feature, as a share of the largest one. A largest value below 1
            counts as 1.
    """

    source: Source
    wrapped: WrappedNetwork
    graph: Graph
    tolerance: float
    deepest: str | None = None
    whole: bool = True

    def make_reference(self, kind: InputKind, pixels: NDArray[np.uint8]) -> Reference:
        """Runs the source on `pixels`, uint8 (N, H, W, 3), and compares the fp32 graph with it.

        Logits are compared, because a softmax that saturates would hide differences.

        Raises:
            ParityError: the graph or its import computes something else.
        """
        scores = source_scores(self.source, pixels)
        has_features = bool(self.wrapped.feature_width)
        logits, *found = self._run_file([self.wrapped.logits, *([FEATURES] if has_features else [])], pixels)
        features = found[0] if found else np.empty((len(pixels), 0), np.float32)
        if not self.source.softmax:
            self._require_equal("ONNX Runtime", "logit", pixels, scores, logits)
        if self.whole:
            imported = self._run_import([self.graph.logits], pixels)[0]
            self._require_equal("the worker's PyTorch", "logit", pixels, logits, imported)
            # The import may find no last linear layer where the wrapping finds one.
            if has_features and self.graph.features:
                imported = self._run_import([self.graph.features], pixels)[0]
                if imported.shape == features.shape:
                    self._require_equal("the worker's PyTorch", "feature", pixels, features, imported)
        elif self.deepest:
            expected, imported = self._run_file([self.deepest], pixels)[0], self._run_import([self.deepest], pixels)[0]
            self._require_equal("the worker's PyTorch", f"value of {self.deepest}", pixels, expected, imported)
        probabilities = scores if self.source.softmax else softmax(scores)
        return Reference(kind, pixels, EngineOutputs(probabilities, features))

    def _run_file(self, names: list[str], pixels: NDArray[np.uint8]) -> list[Floats]:
        """Returns the tensors, each float32 (N, its size), that ONNX Runtime computes."""
        session = open_session(self.wrapped.model, names)
        batches = batched(pixels, self.wrapped.fixed_batch_size or _BATCH)
        parts = [run_session(session, names, {GRAPH_INPUT: batch}) for batch in batches]
        return [np.concatenate(column).reshape(len(pixels), -1) for column in zip(*parts, strict=True)]

    def _run_import(
        self, names: list[str], pixels: NDArray[np.uint8], dtype: torch.dtype = torch.float32
    ) -> list[Floats]:
        """Returns the tensors, each (N, its size), that the worker's PyTorch computes."""
        graph = self.graph if dtype == torch.float32 else move_graph(self.graph, "cpu", dtype)
        parts = []
        with torch.inference_mode():
            for images in normalised(pixels, self.source.preprocessing, self.wrapped.fixed_batch_size or _BATCH):
                found = run(graph, {graph.input: torch.from_numpy(images).to(dtype)}, names)
                parts.append([found[name].numpy() for name in names])
        return [np.concatenate(column).reshape(len(pixels), -1) for column in zip(*parts, strict=True)]

    def _remedy(self, difference: float, pixels: NDArray[np.uint8]) -> str:
        """Returns what to do about a difference. It says if the network itself is that sensitive to rounding."""
        if not self.whole:
            return _OTHER_RESULT
        single, double = (
            self._run_import([self.graph.logits], pixels, kind)[0] for kind in (torch.float32, torch.double)
        )
        rounding = _relative(double, single)
        if not difference <= _ROUNDING_FACTOR * rounding:
            return _OTHER_RESULT
        return (
            f"this network magnifies rounding, as one with random weights does: its own float32 and float64 differ by "
            f"{rounding:.2g}; allow more with --tolerance {_round_up(difference)}"
        )

    def _require_equal(
        self, runner: str, output: str, pixels: NDArray[np.uint8], expected: Floats, found: Floats
    ) -> None:
        if expected.shape != found.shape:
            raise ParityError(
                f"{runner} computes {output}s of shape {found.shape} where {expected.shape} is expected; export the "
                "network to ONNX in another way; no bundle was written"
            )
        difference = _relative(expected, found)
        # Written so that a NaN fails.
        if not difference <= self.tolerance:
            raise ParityError(
                f"a {output} that {runner} computes differs from the network's by {difference:.2g} of the largest on "
                f"{len(expected)} images, and {self.tolerance:.2g} is allowed; {self._remedy(difference, pixels)}; no "
                "bundle was written"
            )


_OTHER_RESULT = (
    "the file computes something else than the network; export the network in evaluation mode, or to ONNX by another "
    "exporter"
)


def _relative(expected: NDArray[np.floating[Any]], found: NDArray[np.floating[Any]]) -> float:
    """Returns the largest difference as a share of the largest expected value. A largest value below 1 counts as 1."""
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    return float(np.abs(expected - found).max(initial=0)) / scale


def _round_up(value: float) -> str:
    """Returns twice the value, rounded up to one digit."""
    digit, exponent = f"{2 * value:.0e}".split("e")
    return f"{(int(digit) + 1) * 10.0 ** int(exponent):.0e}"


def source_scores(source: Source, pixels: NDArray[np.uint8]) -> Floats:
    """Returns the scores, float32 (N, K), that the source itself gives for `pixels`, uint8 (N, H, W, 3)."""
    if source.module is not None:
        return module_scores(source.module, pixels, source.preprocessing)
    session = open_session(source.model, [source.scores])
    size = source.fixed_batch or 1
    parts = []
    for images in normalised(pixels, source.preprocessing, size):
        count = len(images)
        # A file with a fixed batch gets a full one.
        full = np.resize(images, (size, *images.shape[1:]))
        scores = run_session(session, [source.scores], {source.input_name: _as_source_reads(full, source)})[0]
        parts.append(scores[:count])
    joined: Floats = np.concatenate(parts).reshape(len(pixels), -1)
    return joined


def module_scores(module: nn.Module, pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Floats:
    """Returns the scores, float32 (N, K), that a PyTorch module gives for `pixels`, uint8 (N, H, W, 3)."""
    with torch.inference_mode():
        parts = [module(torch.from_numpy(images)) for images in normalised(pixels, preprocessing, _BATCH)]
    scores: Floats = torch.cat(parts).flatten(1).numpy()
    return scores


def _as_source_reads(images: Floats, source: Source) -> NDArray[Any]:
    """Returns normalised images, float32 (N, 3, H, W), RGB, in the layout, channel order and type of the source."""
    if source.preprocessing.channel_order == "bgr":
        images = images[:, ::-1]
    if source.layout == "NHWC":
        images = images.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images.round().astype(np.uint8) if source.dtype == "uint8" else images)


def softmax(logits: Floats) -> Floats:
    """Returns the probabilities, float32 (N, K), of `logits`, float32 (N, K)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: Floats = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def noise_images(spec: InputSpec, count: int) -> NDArray[np.uint8]:
    """Returns uniform noise, uint8 (count, H, W, 3), the same at every call. No photo resembles it."""
    return np.random.default_rng(0).integers(0, 256, (count, spec.height, spec.width, 3), dtype=np.uint8)


def run_all(engine: Engine, pixels: NDArray[np.uint8]) -> EngineOutputs:
    """Runs the engine on `pixels`, uint8 (N, H, W, 3), for any N, in the largest batches that it takes."""
    parts = [engine.run(batch) for batch in batched(pixels, engine.info.max_batch_size)]
    return EngineOutputs(
        np.concatenate([part.probabilities for part in parts]), np.concatenate([part.features for part in parts])
    )


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
        difference = _relative(expected, found)
        # Written so that a NaN fails.
        if not difference <= tolerance:
            raise ParityError(
                f"the {precision} graph's {output} differs from the network's by {difference:.2g} on {len(expected)} "
                f"{reference.kind}, and {tolerance:.2g} is allowed ({_REMEDIES[precision]}); no bundle was written"
            )


def batched(pixels: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    """Yields `pixels` in batches of at most `size`."""
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


def normalised(pixels: NDArray[np.uint8], preprocessing: Preprocessing, size: int) -> Iterator[Floats]:
    """Normalises `pixels`, uint8 (N, H, W, 3). Yields them in batches of at most `size`, float32 (n, 3, H, W)."""
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    for batch in batched(pixels, size):
        images = (batch.astype(np.float32) / np.float32(255) - mean) / std
        yield np.ascontiguousarray(images.transpose(0, 3, 1, 2))
