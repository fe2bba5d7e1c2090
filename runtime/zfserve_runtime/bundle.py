"""The bundle: the versioned directory that export writes and that server and worker read.

models/<name>/<version>/
  manifest.json         this module's `Manifest`
  weights.safetensors   what the worker loads
  model.onnx            what the server runs; beside it model.fp16.onnx, model.int8.onnx, model.int8-symmetric.onnx
  golden.npz            inputs with expected outputs, run before an engine may serve
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

GRAPH_INPUT = "pixels"
"""Name of every graph's one input, uint8 (N, H, W, 3); the outputs are `Manifest.output_widths`."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""What the folders of models and versions may be called."""

Precision = Literal["fp32", "fp16", "int8", "int8-symmetric"]
"""What a graph computes in. Its activations are uint8 in `int8`, which ONNX Runtime runs fastest on x86, and int8 with
zero points of 0 in `int8-symmetric`, which is all that TensorRT compiles."""


class BundleError(ValueError):
    """The bundle cannot be used; the message says why and what to do."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassEntry(_Entry):
    """One class, in the order of the network's outputs."""

    class_id: str
    label: str


class InputSpec(_Entry):
    """How a photo becomes the network's input, uint8 (height, width, 3), RGB.

    Attributes:
        resize: `squash` scales both sides to the input; `crop` scales the shorter side to `shorter_side` and cuts
            out the centre.
        mean, std: per channel, on values in [0, 1]. They are part of the ONNX graph; only the worker applies them.
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
            raise ValueError(f"shorter_side ({self.shorter_side}) must be at least the input's sides to crop from")
        return self


class LayerEntry(_Entry):
    """One layer of the trunk that can be projected; see `zfserve_model.layer_table` for how it is computed.

    Attributes:
        receptive_field: side of the square a unit sees, in input pixels.
        stride: input pixels between neighbouring units.
        offset: first column that unit 0 sees; negative inside the padding.
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
    """PyTorch against the exported graph. Differences are of probabilities; shares are in [0, 1]."""

    precision: Precision
    inputs: Literal["photos", "noise"]
    count: int
    max_difference: float
    top1_agreement: float


class AccuracyEntry(_Entry):
    """Shares of a validation set classified correctly, in [0, 1]."""

    precision: Precision
    count: int
    top1: float
    top5: float


class Artefact(_Entry):
    """One file an engine can run.

    Attributes:
        golden_tolerance: largest absolute difference of any probability that an engine may show on the golden
            inputs, against the outputs recorded for this artefact.
        bf16_tolerance: the same of an engine that computes its floats in bfloat16; None where none may.
    """

    file: str
    golden_tolerance: float
    bf16_tolerance: float | None = None


class Manifest(_Entry):
    """All that server and worker know about a model.

    Attributes:
        fingerprint: hex digest of the weights' names, shapes and values; ties server and worker together.
        feature_width: F, the width of the last hidden layer.
        files: sha256 (hex) of every other file of the bundle, by its path relative to the bundle.
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
        """How many float32 values each of the graph's outputs has for one photo, by its name."""
        return {"probabilities": len(self.classes), "features": self.feature_width}

    def layer(self, name: str) -> LayerEntry | None:
        return next((layer for layer in self.layers if layer.name == name), None)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files were checked against their digests."""

    folder: Path
    manifest: Manifest

    def artefact(self, precision: Precision) -> Path:
        """Raises BundleError where the bundle holds no artefact of that precision."""
        if precision not in self.manifest.artefacts:
            held = ", ".join(self.manifest.artefacts)
            flag = "--int8" if precision.startswith("int8") else f"--{precision}"
            raise BundleError(f"the bundle holds no {precision} artefact, only {held}; export it with {flag}")
        return self.folder / self.manifest.artefacts[precision].file


def load_bundle(folder: Path) -> Bundle:
    """Read and check a bundle, or the newest version in a model's folder.

    Raises:
        BundleError: no bundle there, an unknown schema, or a file that is missing, not listed, or differs from its
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
    """Raises BundleError where there is none, or it is of another schema, or says what cannot be."""
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
    """`folder` itself where it is a bundle; else the highest of the versions below it, numbers compared as numbers."""
    if (folder / MANIFEST).is_file():
        return folder
    versions = [entry.parent for entry in folder.glob(f"*/{MANIFEST}") if not entry.parent.name.startswith(".")]
    if not versions:
        raise BundleError(f"there is no bundle at {folder}; `zfserve export` writes one")
    return max(versions, key=lambda version: version_key(version.name))


def file_digest(file: Path) -> str:
    """sha256 of a file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


_DIGITS = re.compile(r"[0-9]{1,100}")
"""More are a word: Python makes no numbers of thousands of digits."""


def version_key(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts versions, the newest last: numbers compared as numbers, and higher than words."""
    parts = [(_DIGITS.fullmatch(part) is not None, part) for part in name.replace("-", ".").split(".")]
    return tuple((is_number, int(part) if is_number else 0, part) for is_number, part in parts)
