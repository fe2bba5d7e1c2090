"""Defines the identity of a compiled engine: its key in the store, and the reasons why it may not serve a request.

`store`, `record` and the command `zfserve engines` use it. An engine holds weights and machine code for certain GPUs.
Nothing in it stops another model or machine from running it. So the store records its whole identity beside it, not
only a hash, and compares it with each request. An error can then say what differs.

There are two kinds of engines. `tensorrt` tunes on the GPU of this machine, so its engines belong to that GPU and
driver. `tensorrt-rtx` builds ahead of time for compute capabilities, so its engines belong to every GPU that has one of
them.
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
    """Holds the properties of a machine that decide which engines it can run.

    Attributes:
        gpu: the GPU; None on a machine without one, which can only build engines.
        system: the operating system, such as "Linux".
        architecture: the architecture of the CPU, such as "x86_64".
    """

    gpu: GpuFacts | None
    system: str
    architecture: str

    @classmethod
    def here(cls, gpu: GpuFacts | None) -> Self:
        """Returns this machine, with the given GPU."""
        return cls(gpu, platform.system(), platform.machine())


@dataclass(frozen=True)
class EngineRequest:
    """Describes the engine that a caller needs. `request_engine` makes it.

    Attributes:
        model: the name of the bundle's model, for messages. Only the graph's digest is compared.
        version: the version of the bundle's model, for messages.
        graph_sha256: the digest of the ONNX file, which includes the weights.
        tensors: the inputs and outputs, such as "pixels: uint8 (N, 224, 224, 3)".
        settings: the settings of the build. If they name compute capabilities, the engine must run on all of them,
            otherwise on the GPU of `host`.
        library_version: the version of the library that is installed.
        host: the machine that runs the engine.
        min_batch_size: if given, an engine with other settings may serve too. It must have the same library and
            precision, and take batches of this size. None: all settings must be the same.
    """

    model: str
    version: str
    graph_sha256: str
    tensors: tuple[str, ...]
    settings: BuildSettings
    library_version: str
    host: Host
    min_batch_size: int | None = None

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """The compute capabilities of the GPUs on which the engine must run."""
        gpu = self.host.gpu
        return self.settings.compute_capabilities or ((gpu.compute_capability,) if gpu else ())

    @property
    def build_settings(self) -> BuildSettings:
        """The settings with `compute_capabilities` filled in."""
        return replace(self.settings, compute_capabilities=self.compute_capabilities)


def request_engine(
    bundle: Bundle, settings: BuildSettings, library_version: str, host: Host, min_batch_size: int | None = None
) -> EngineRequest:
    """Returns the request for an engine of `bundle` with `settings` on `host`. For `min_batch_size`, see EngineRequest.

    Raises:
        BundleError: the bundle holds no graph of that precision.
        EngineUnavailable: the library or the settings need a GPU, and `host` has none.
    """
    if settings.library == "tensorrt":
        if host.gpu is None:
            raise EngineUnavailable("tensorrt builds and runs on an NVIDIA GPU only, and this machine has none")
        if settings.compute_capabilities not in ((), (host.gpu.compute_capability,)):
            raise EngineUnavailable("tensorrt builds for this machine's GPU only; tensorrt-rtx can build for others")
    elif host.gpu is None and not settings.compute_capabilities:
        raise EngineUnavailable("there is no NVIDIA GPU here; name the GPUs to build for with --compute-capability")
    manifest, file = bundle.manifest, bundle.artefact(settings.precision)
    tensors = (
        f"pixels: uint8 (N, {manifest.input.height}, {manifest.input.width}, 3)",
        *(f"{name}: float32 (N, {width})" for name, width in manifest.output_widths.items()),
    )
    return EngineRequest(
        manifest.name,
        manifest.version,
        manifest.files[file.name],
        tensors,
        settings,
        library_version,
        host,
        min_batch_size,
    )


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TuningGpu(_FrozenModel):
    """Describes the GPU and the driver on which an engine was tuned. The attributes are as in GpuFacts."""

    name: str
    compute_capability: str
    driver_version: str
    cuda_version: str

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability})"


class EngineIdentity(_FrozenModel):
    """Holds everything that determines the content of an engine.

    Attributes:
        graph_sha256: the digest of the ONNX file, which includes the weights.
        tensors: the inputs and outputs, as in EngineRequest.
        settings: the settings of the build. Their `compute_capabilities` are those of the target GPUs, and never empty.
        library_version: the version of the library that built the engine.
        card: the GPU on which the engine was tuned; None where it was built ahead of time.
        system: the operating system, as in Host.
        architecture: the architecture of the CPU, as in Host.
    """

    graph_sha256: str
    tensors: tuple[str, ...]
    settings: BuildSettings
    library_version: str
    card: TuningGpu | None
    system: str
    architecture: str

    @classmethod
    def of(cls, request: EngineRequest) -> Self:
        """Returns the identity of the engine that a build for `request` makes."""
        card = None
        if request.settings.library == "tensorrt" and (gpu := request.host.gpu):
            card = TuningGpu(
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
        """The sha256 of all fields, in hex. Two engines have the same key only if each can replace the other."""
        document = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(document.encode()).hexdigest()

    def differences(self, request: EngineRequest) -> list[str]:
        """Returns why this engine may not serve `request`: sentences without a full stop, the most important first.

        The list is empty if the engine may serve.
        """
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
        """Returns why this engine cannot run on `host`, for any model: sentences without a full stop.

        Args:
            host: the machine that is to run the engine.
            library_version: the installed version of the library that built the engine; None where it is not installed.
            named: the compute capabilities that the engine must support. If empty, it must support the GPU of `host`.
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
        built_for = str(self.card) if self.card else "compute capability " + _format(self.settings.compute_capabilities)
        if self.card is None and named:
            if missing := [wanted for wanted in named if wanted not in self.settings.compute_capabilities]:
                yield f"it was built for {built_for}, not for {_format(tuple(missing))}"
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
    """Yields why an engine with the settings `built` may not serve `request`."""
    names = {field.name for field in fields(BuildSettings)} - {"compute_capabilities"}  # `faults_on` compares these
    if request.min_batch_size is not None:
        names = {"library", "precision"}
        if built.batches[-1] < request.min_batch_size:
            yield f"it takes batches of up to {built.batches[-1]}, not of {request.min_batch_size}"
    for name in sorted(names):
        had, asked = getattr(built, name), getattr(request.settings, name)
        if had != asked:
            yield f"it was built with {name.replace('_', ' ')} {_format(had)}, not {_format(asked)}"


def _ascending(compute_capabilities: tuple[str, ...]) -> tuple[str, ...]:
    """Sorts compute capabilities as numbers, so that 8.6 comes before 12.0."""
    return tuple(sorted(compute_capabilities, key=lambda capability: (len(capability), capability)))


def _format(value: object) -> str:
    """Formats the value of a setting for messages."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "by default" if value is None else str(value)
