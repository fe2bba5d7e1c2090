"""Reads bundles. A bundle is the folder of one version of a model; export writes it, server and worker read it.

models/<name>/<version>/
  manifest.json         a `Manifest`
  model.onnx            the network, which the server runs and the worker projects; variants are model.fp16.onnx,
                        model.int8.onnx and model.int8-symmetric.onnx
  golden.npz            inputs with expected outputs, which every engine must reproduce before it may serve

Bundles of schema 1 also hold weights.safetensors. Their manifests are converted while they are read, so the rest of the
code knows schema 2 only.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
_MOST_FAULTS = 5
"""The most faults of a manifest that an error names."""
GRAPH = "model.onnx"
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
        mean, std: the mean and standard deviation of each channel, in RGB order, on values in [0, 1]. The ONNX graph
            contains them, so nobody applies them to the input.
        interpolation: the filter of the resize.
    """

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    resize: Literal["squash", "crop"]
    shorter_side: int = Field(gt=0)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resize == "crop" and self.shorter_side < max(self.height, self.width):
            raise ValueError(f"shorter_side ({self.shorter_side}) must be at least as long as both sides of the input")
        return self


class LayerEntry(_Entry):
    """Describes one layer that can be projected. `zfserve_model.layers.layer_table` computes it.

    Unit i sees the input pixels from `offset + i * stride` up to, but not including,
    `offset + i * stride + receptive_field`. The fields with `_width` hold the same for columns. If they are left
    out, columns are like rows.

    Attributes:
        name: the name in requests, unique among the layers.
        tensor: the name of the layer's output in `model.onnx`. Empty in a converted bundle of schema 1.
        kind: the kind of operation, such as "conv", "relu", "norm", "pool", "add" or "concat".
        stage: the name of the group of layers, such as "stage4". Layers of one stage stand together.
        channels, height, width: the shape of the output.
        receptive_field: the number of rows that a unit sees, in input pixels. Padding counts.
        stride: the distance between neighbouring units along a column, in input pixels.
        offset: the first row that unit 0 sees. It is negative if that row lies in the padding.
        whole_image: True if every unit sees the whole image, as behind a squeeze-and-excitation gate.
        rule: the rule of a projection from this layer. `extended` rectifies more functions than the paper's ReLU.
    """

    name: str
    tensor: str = ""
    kind: str
    stage: str = ""
    channels: int = Field(gt=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    receptive_field: int = Field(ge=0)
    stride: int = Field(ge=0)
    offset: int
    receptive_field_width: int = Field(default=0, ge=0)
    stride_width: int = Field(default=0, ge=0)
    offset_width: int = 0
    whole_image: bool = False
    rule: Literal["paper", "extended"] = "paper"

    @model_validator(mode="before")
    @classmethod
    def _columns_are_like_rows(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        rows = ("receptive_field", "stride", "offset")
        return {f"{name}_width": fields[name] for name in rows if name in fields} | dict(fields)


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
        schema_version: the schema of the file. 1 marks a manifest that was converted while it was read.
        source: the origin of the network, such as "pytorchcv:resnet18" or "resnet50.onnx". Empty where unknown.
        architecture: the name of the architecture, such as "zfnet" or "resnet18".
        feature_width: F, the width of the tensor that enters the last linear layer. 0 if there is no such tensor; then
            the graph has no output `features`.
        layers: the layers that can be projected, in forward order.
        projection_obstacle: a sentence that names the node which no projection can pass. Empty if there is none.
        attribution_obstacle: a sentence that names the node which prevents attributions. Empty if there is none.
        fixed_batch_size: the only batch size that the graph takes. 0 if it takes any.
        fingerprint: the hex digest of the network and its weights. It is the same in a server and its worker, and every
            graph file carries it in the metadata property "fingerprint". In schema 2 it is
            `zfserve_model.importing.fingerprint.graph_fingerprint` of `model.onnx`.
        files: the sha256 (hex) of every other file of the bundle, by its path relative to the bundle.
    """

    schema_version: Literal[1, 2] = 2
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    source: str = ""
    architecture: str
    feature_width: int = Field(ge=0)
    classes: tuple[ClassEntry, ...] = Field(min_length=1)
    input: InputSpec
    layers: tuple[LayerEntry, ...] = ()
    projection_obstacle: str = ""
    attribution_obstacle: str = ""
    fixed_batch_size: int = Field(default=0, ge=0)
    artefacts: dict[Precision, Artefact]
    fingerprint: str
    files: dict[str, str]
    parity: tuple[ParityEntry, ...] = ()
    accuracy: tuple[AccuracyEntry, ...] = ()

    @property
    def output_widths(self) -> dict[str, int]:
        """Returns how many float32 values each output of the graph has for one photo, by the output's name."""
        features = {"features": self.feature_width} if self.feature_width else {}
        return {"probabilities": len(self.classes), **features}

    def layer(self, name: str) -> LayerEntry | None:
        """Returns the layer called `name`, or None if there is none."""
        return next((layer for layer in self.layers if layer.name == name), None)

    def resolve_layer(self, name: str) -> LayerEntry | None:
        """Returns the layer that `name` selects, or None if there is none.

        Args:
            name: the name of a layer; or the name of a stage, which stands for its last layer that is no pool, or for
                its last layer if all are pools; or "last", which stands for the last stage.
        """
        if not name:
            return None  # a layer may be in no stage, but no request selects it by that
        if named := self.layer(name):
            return named
        stage = self.layers[-1].stage if name == "last" and self.layers else name
        layers = [layer for layer in self.layers if layer.stage == stage]
        no_pools = [layer for layer in layers if layer.kind != "pool"]
        return next(reversed(no_pools or layers), None)


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
    needed = {GOLDEN, *(artefact.file for artefact in manifest.artefacts.values())}
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
    except (OSError, ValueError, RecursionError) as error:  # JSON may nest too deeply
        raise BundleError(f"{file} cannot be read; export the bundle again") from error
    schema = document.get("schema_version") if isinstance(document, dict) else None
    if schema not in (1, SCHEMA_VERSION):
        raise BundleError(
            f"the bundle has schema {schema}, this release reads 1 to {SCHEMA_VERSION}; export it again with this "
            "release"
        )
    try:
        return Manifest.model_validate(_converted(document) if schema == 1 else document)
    except ValidationError as error:
        found = error.errors()
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in found[:_MOST_FAULTS])
        faults += f"; and {len(found) - _MOST_FAULTS} more" if len(found) > _MOST_FAULTS else ""
        raise BundleError(f"{file} is not valid: {faults}") from error


def _converted(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of schema 2 for a manifest of schema 1.

    Every network of schema 1 is a chain of five stages, and a layer's name ends in the number of its stage.
    """
    kept = {key: value for key, value in document.items() if key not in ("hidden_width", "contrast_norm")}
    if isinstance(layers := document.get("layers"), list):
        kept["layers"] = [_with_stage(layer) if isinstance(layer, dict) else layer for layer in layers]
    return kept


def _with_stage(layer: dict[str, Any]) -> dict[str, Any]:
    return layer | {"stage": f"stage{str(layer.get('name'))[-1:]}"}


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
