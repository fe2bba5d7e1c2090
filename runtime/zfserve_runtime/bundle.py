"""Reads bundles. A bundle is the folder of one version of a model; export writes it, server and worker read it.

models/<name>/<version>/
  manifest.json         a `Manifest`
  weights.safetensors   the weights, which the worker loads
  model.onnx            the graph, which the server runs; variants are model.fp16.onnx, model.int8.onnx and
                        model.int8-symmetric.onnx
  golden.npz            inputs with expected outputs, which every engine must reproduce before it may serve
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.npz"

DEFAULT_MODEL = Path("models/zfnet")
"""The folder that commands use if none is named."""

GRAPH_INPUT = "pixels"
"""The name of the only input of every graph, uint8 (N, H, W, 3). `Manifest.output_widths` names the outputs."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of models and versions match this pattern. They are the names of folders."""

Precision = Literal["fp32", "fp16", "int8", "int8-symmetric"]
"""The number format in which a graph computes. In `int8` activations are uint8, which ONNX Runtime runs fastest on x86.
In `int8-symmetric` they are int8 with zero points of 0, the only kind that TensorRT compiles."""


class BundleError(ValueError):
    """The bundle cannot be used. The message says why, and what to do."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassEntry(_Entry):
    """Describes one class. Classes stand in the order of the network's outputs."""

    class_id: str
    label: str


class InputSpec(_Entry):
    """Describes how a photo becomes the network's input, uint8 (height, width, 3), RGB.

    Attributes:
        resize: `squash` scales both sides to the input. `crop` scales the shorter side to `shorter_side` pixels and
            cuts out the centre.
        mean, std: the mean and standard deviation of each channel, on values in [0, 1]. The ONNX graph contains them,
            so only the worker applies them.
    """

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    resize: Literal["squash", "crop"]
    shorter_side: int = Field(gt=0)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resize == "crop" and self.shorter_side < max(self.height, self.width):
            raise ValueError(f"shorter_side ({self.shorter_side}) must be at least as long as both sides of the input")
        return self


class LayerEntry(_Entry):
    """Describes one layer of the trunk that can be projected. `zfserve_model.layer_table` computes it.

    Attributes:
        receptive_field: the side of the square that a unit sees, in input pixels.
        stride: the distance between neighbouring units, in input pixels.
        offset: the first column that unit 0 sees. It is negative if that column lies in the padding.
    """

    name: str
    kind: Literal["conv", "relu", "norm", "pool"]
    channels: int
    height: int
    width: int
    receptive_field: int
    stride: int
    offset: int


class ParityEntry(_Entry):
    """Compares the exported graph with PyTorch.

    Attributes:
        max_difference: the largest difference of any probability.
        top1_agreement: the share of inputs with the same top class, in [0, 1].
    """

    precision: Precision
    inputs: Literal["photos", "noise"]
    count: int
    max_difference: float
    top1_agreement: float


class AccuracyEntry(_Entry):
    """Holds the top-1 and top-5 accuracy on `count` photos of a validation set, as shares in [0, 1]."""

    precision: Precision
    count: int
    top1: float
    top5: float


class Artefact(_Entry):
    """Describes one file that an engine can run.

    Attributes:
        golden_tolerance: the largest absolute difference between any probability of an engine on the golden inputs and
            the probability recorded for this artefact.
        bf16_tolerance: the same limit for an engine that computes its floats in bfloat16. None forbids such an engine.
    """

    file: str
    golden_tolerance: float
    bf16_tolerance: float | None = None


class Manifest(_Entry):
    """Describes a model. Server and worker know nothing else about it.

    Attributes:
        fingerprint: the hex digest of the weights' names, shapes and values. It is the same in a server and its worker.
        feature_width: F, the width of the last hidden layer.
        files: the sha256 (hex) of every other file of the bundle, by its path relative to the bundle.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    architecture: str
    hidden_width: int
    contrast_norm: bool
    feature_width: int
    classes: tuple[ClassEntry, ...] = Field(min_length=1)
    input: InputSpec
    layers: tuple[LayerEntry, ...] = Field(min_length=1)
    artefacts: dict[Precision, Artefact]
    fingerprint: str
    files: dict[str, str]
    parity: tuple[ParityEntry, ...] = ()
    accuracy: tuple[AccuracyEntry, ...] = ()

    @property
    def output_widths(self) -> dict[str, int]:
        """Returns how many float32 values each output of the graph has for one photo, by the output's name."""
        return {"probabilities": len(self.classes), "features": self.feature_width}

    def layer(self, name: str) -> LayerEntry | None:
        """Returns the layer called `name`, or None if there is none."""
        return next((layer for layer in self.layers if layer.name == name), None)


@dataclass(frozen=True)
class Bundle:
    """Holds a bundle on disk whose files match their digests."""

    folder: Path
    manifest: Manifest

    def artefact(self, precision: Precision) -> Path:
        """Returns the file of an artefact.

        Raises:
            BundleError: the bundle holds no artefact of that precision.
        """
        if precision not in self.manifest.artefacts:
            held = ", ".join(self.manifest.artefacts)
            flag = "--int8" if precision.startswith("int8") else f"--{precision}"
            raise BundleError(f"the bundle holds no {precision} artefact, only {held}; export it with {flag}")
        return self.folder / self.manifest.artefacts[precision].file


def load_bundle(folder: Path) -> Bundle:
    """Reads and checks a bundle.

    Args:
        folder: the folder of the bundle, or the folder of a model. In a model's folder the newest version is read.

    Raises:
        BundleError: there is no bundle, its schema is unknown, or a file is missing, not listed, or differs from its
            digest.
    """
    folder = newest_version(folder)
    manifest = read_manifest(folder / MANIFEST)
    needed = {WEIGHTS, GOLDEN, *(artefact.file for artefact in manifest.artefacts.values())}
    for name in sorted(needed - manifest.files.keys()):
        raise BundleError(f"the manifest in {folder} holds no digest of {name}; export the bundle again")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise BundleError(f"{name} is missing from the bundle {folder}; export it again")
        if file_digest(folder / name) != digest:
            raise BundleError(f"{name} in {folder} differs from its digest in the manifest; export it again")
    return Bundle(folder, manifest)


def read_manifest(file: Path) -> Manifest:
    """Reads a manifest.

    Raises:
        BundleError: the file cannot be read, has another schema, or is not valid.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read; export the bundle again") from error
    schema = document.get("schema_version") if isinstance(document, dict) else None
    if schema != SCHEMA_VERSION:
        raise BundleError(
            f"the bundle has schema {schema}, this release reads {SCHEMA_VERSION}; export it again with this release"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise BundleError(f"{file} is not valid: {faults}") from error


def newest_version(folder: Path) -> Path:
    """Returns `folder` itself if it is a bundle, otherwise the folder of the newest version below it.

    Raises:
        BundleError: `folder` is no bundle, and no folder directly below it is one.
    """
    if (folder / MANIFEST).is_file():
        return folder
    versions = [entry.parent for entry in folder.glob(f"*/{MANIFEST}") if not entry.parent.name.startswith(".")]
    if not versions:
        raise BundleError(f"there is no bundle at {folder}; `zfserve export` writes one")
    return max(versions, key=lambda version: version_key(version.name))


def file_digest(file: Path) -> str:
    """Returns the sha256 of a file, in hex.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


_DIGITS = re.compile(r"[0-9]{1,100}")
"""Matches a number in a version. A longer run of digits counts as a word, because Python refuses to convert thousands
of digits to a number."""


def version_key(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Returns a key that sorts versions, the newest last. Numbers compare as numbers, and are newer than words."""
    parts = [(_DIGITS.fullmatch(part) is not None, part) for part in name.replace("-", ".").split(".")]
    return tuple((is_number, int(part) if is_number else 0, part) for is_number, part in parts)
