"""What a compiled engine was built from, with and for: the key it is stored under, and why it may not serve elsewhere.

An engine holds the weights and the machine code of one card, and nothing in it stops another model or machine from
running it, so the whole of its identity is recorded beside it and compared, never only its hash: a refusal can say
what differs. There are two kinds. `tensorrt` tunes on the card at hand, so its engines belong to that card and driver;
`tensorrt-rtx` builds ahead of time for compute capabilities, so its engines belong to every card that has one of them.
"""

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Self

from pydantic import BaseModel, ConfigDict
from zfserve_runtime.bundle import Bundle

from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.tensorrt.settings import BuildSettings


@dataclass(frozen=True)
class Host:
    """The machine an engine is to run on, as far as engines care.

    Attributes:
        gpu: None where engines are only built.
        system: such as "Linux".
        architecture: of the CPU, such as "x86_64".
    """

    gpu: GpuFacts | None
    system: str
    architecture: str

    @classmethod
    def here(cls, gpu: GpuFacts | None) -> Self:
        return cls(gpu, platform.system(), platform.machine())


@dataclass(frozen=True)
class EngineRequest:
    """An engine that somebody wants; made by `request_engine`.

    Attributes:
        model, version: of the bundle. For the reader; the graph's digest is what counts.
        graph_sha256: of the ONNX file, weights and all.
        tensors: inputs and outputs, such as "pixels: uint8 (N, 224, 224, 3)".
        settings: without `compute_capabilities` it must run on the card of `host`, else on all that are named.
        library_version: the one that is installed.
        enough_for: where given, an engine that was built with other settings will do too, as long as it is of that
            library and precision and takes batches of this size. None: the settings must be the same.
    """

    model: str
    version: str
    graph_sha256: str
    tensors: tuple[str, ...]
    settings: BuildSettings
    library_version: str
    host: Host
    enough_for: int | None = None

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """Of the cards that the engine must run on."""
        gpu = self.host.gpu
        return self.settings.compute_capabilities or ((gpu.compute_capability,) if gpu else ())

    @property
    def build_settings(self) -> BuildSettings:
        """`settings` with the cards named."""
        return replace(self.settings, compute_capabilities=self.compute_capabilities)


def request_engine(
    bundle: Bundle, settings: BuildSettings, library_version: str, host: Host, enough_for: int | None = None
) -> EngineRequest:
    """The engine of `bundle` with `settings`, for `host`; `enough_for` as in EngineRequest.

    Raises:
        BundleError: the bundle holds no graph of that precision.
        EngineUnavailable: there is no card here, and the library or the settings need one.
    """
    if settings.library == "tensorrt":
        if host.gpu is None:
            raise EngineUnavailable("tensorrt builds and runs on an NVIDIA GPU only, and there is none here")
        if settings.compute_capabilities not in ((), (host.gpu.compute_capability,)):
            raise EngineUnavailable("tensorrt builds for the card at hand only; tensorrt-rtx can build for others")
    elif host.gpu is None and not settings.compute_capabilities:
        raise EngineUnavailable("there is no NVIDIA GPU here; name the cards to build for with --compute-capability")
    manifest, file = bundle.manifest, bundle.artefact(settings.precision)
    tensors = (
        f"pixels: uint8 (N, {manifest.input.height}, {manifest.input.width}, 3)",
        f"probabilities: float32 (N, {len(manifest.classes)})",
        f"features: float32 (N, {manifest.feature_width})",
    )
    return EngineRequest(
        manifest.name, manifest.version, manifest.files[file.name], tensors, settings, library_version, host, enough_for
    )


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Card(_Entry):
    """A card and its driver, which an engine was tuned on."""

    name: str
    compute_capability: str
    driver_version: str
    cuda_version: str

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability})"


class EngineIdentity(_Entry):
    """All that decides what is in an engine.

    Attributes:
        settings: every one is part of it; `compute_capabilities` are those it was built for, never empty.
        card: that it was tuned on; None where it was built ahead of time.
        tensors: as in EngineRequest.
    """

    graph_sha256: str
    tensors: tuple[str, ...]
    settings: BuildSettings
    library_version: str
    card: Card | None
    system: str
    architecture: str

    @classmethod
    def of(cls, request: EngineRequest) -> Self:
        """That of the engine that is built for `request` where there is none to be had."""
        card = None
        if request.settings.library == "tensorrt" and (gpu := request.host.gpu):
            card = Card(
                name=gpu.name,
                compute_capability=gpu.compute_capability,
                driver_version=gpu.driver_version,
                cuda_version=gpu.cuda_version,
            )
        return cls(
            graph_sha256=request.graph_sha256,
            tensors=request.tensors,
            settings=replace(request.settings, compute_capabilities=_ascending(request.compute_capabilities)),
            library_version=request.library_version,
            card=card,
            system=request.host.system,
            architecture=request.host.architecture,
        )

    @property
    def key(self) -> str:
        """sha256 of all fields, in hex. The same for two engines only where each may stand in for the other."""
        document = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(document.encode()).hexdigest()

    def differences(self, request: EngineRequest) -> list[str]:
        """Why this engine may not serve `request`, the weightiest first, each a sentence without its full stop."""
        found = []
        if self.graph_sha256 != request.graph_sha256:
            found.append(
                f"it was built for other weights (its graph is {self.graph_sha256[:12]}, "
                f"that of {request.model} {request.version} is {request.graph_sha256[:12]})"
            )
        found += self.faults_on(request.host, request.library_version, request.settings.compute_capabilities)
        found += _setting_differences(self.settings, request)
        if self.tensors != request.tensors:
            found.append(f"its inputs and outputs are {'; '.join(self.tensors)}, not {'; '.join(request.tensors)}")
        return found

    def faults_on(self, host: Host, library_version: str | None, named: tuple[str, ...] = ()) -> list[str]:
        """Why this engine cannot run on `host`, whatever its model.

        Args:
            library_version: of the library that built it, as installed there; None where it is not.
            named: compute capabilities that it is wanted for, instead of that of the host's card.
        """
        return [
            *self._library_faults(library_version),
            *self._system_faults(host),
            *self._card_faults(host.gpu, named),
        ]

    def _library_faults(self, version: str | None) -> Iterator[str]:
        built_by = f"it was built by {self.settings.library} {self.library_version}"
        if version is None:
            yield f"{built_by}, which is not installed"
        elif version != self.library_version:
            yield f"{built_by}, and {version} is installed"

    def _system_faults(self, host: Host) -> Iterator[str]:
        if (self.system, self.architecture) != (host.system, host.architecture):
            yield (
                f"it was built for {self.system} on {self.architecture}, "
                f"and this is {host.system} on {host.architecture}"
            )

    def _card_faults(self, gpu: GpuFacts | None, named: tuple[str, ...]) -> Iterator[str]:
        built_for = str(self.card) if self.card else "compute capability " + _show(self.settings.compute_capabilities)
        if self.card is None and named:
            if missing := [wanted for wanted in named if wanted not in self.settings.compute_capabilities]:
                yield f"it was built for {built_for}, not for {_show(tuple(missing))}"
        elif gpu is None:
            yield f"it was built for {built_for}, and there is no NVIDIA GPU here"
        elif self.card is None:
            if gpu.compute_capability not in self.settings.compute_capabilities:
                yield f"it was built for {built_for}, this is {gpu.name} ({gpu.compute_capability})"
        elif (self.card.name, self.card.compute_capability) != (gpu.name, gpu.compute_capability):
            yield f"it was built for {built_for}, this is {gpu.name} ({gpu.compute_capability})"
        elif (self.card.driver_version, self.card.cuda_version) != (gpu.driver_version, gpu.cuda_version):
            yield (
                f"it was built under driver {self.card.driver_version} (CUDA {self.card.cuda_version}), "
                f"this is {gpu.driver_version} (CUDA {gpu.cuda_version})"
            )


def _setting_differences(built: BuildSettings, request: EngineRequest) -> Iterator[str]:
    names = {field.name for field in fields(BuildSettings)} - {"compute_capabilities"}  # those `faults_on` compares
    if request.enough_for is not None:
        names = {"library", "precision"}
        if built.batches[-1] < request.enough_for:
            yield f"it takes batches of up to {built.batches[-1]}, not of {request.enough_for}"
    for name in sorted(names):
        had, asked = getattr(built, name), getattr(request.settings, name)
        if had != asked:
            yield f"it was built with {name.replace('_', ' ')} {_show(had)}, not {_show(asked)}"


def _ascending(compute_capabilities: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(compute_capabilities, key=lambda capability: (len(capability), capability)))  # 8.6, 12.0


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "by default" if value is None else str(value)
