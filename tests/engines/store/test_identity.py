from dataclasses import replace
from typing import Any

import pytest
from conftest import ColourBundle
from fakes.engine_store import A10, AHEAD, H100, L4, RTX_4090, TUNED, on_card, with_settings
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.store.identity import EngineIdentity, EngineRequest, Host, request_engine
from zfserve_engines.tensorrt.settings import BuildSettings
from zfserve_runtime.bundle import BundleError


def differences(built: EngineRequest, wanted: EngineRequest) -> list[str]:
    return EngineIdentity.of(built).differences(wanted)


def on_system(request: EngineRequest, system: str, architecture: str) -> EngineRequest:
    return replace(request, host=replace(request.host, system=system, architecture=architecture))


OTHERS: dict[str, tuple[EngineRequest, str]] = {
    "weights": (
        replace(TUNED, graph_sha256="cd" * 32, version="2"),
        "it was built for other weights (its graph is abababababab, that of zfnet 2 is cdcdcdcdcdcd)",
    ),
    "version": (
        replace(TUNED, library_version="11.1.0.12"),
        "it was built by tensorrt 11.0.0.114, and 11.1.0.12 is installed",
    ),
    "card": (on_card(TUNED, H100), "it was built for NVIDIA A10 (8.6), this is NVIDIA H100 (9.0)"),
    "card of the same capability": (
        on_card(TUNED, replace(A10, name="NVIDIA A40")),
        "it was built for NVIDIA A10 (8.6), this is NVIDIA A40 (8.6)",
    ),
    "driver": (
        on_card(TUNED, replace(A10, driver_version="591.10")),
        "it was built under driver 580.65.06 (CUDA 13.0), this is 591.10 (CUDA 13.0)",
    ),
    "CUDA": (
        on_card(TUNED, replace(A10, cuda_version="13.1")),
        "it was built under driver 580.65.06 (CUDA 13.0), this is 580.65.06 (CUDA 13.1)",
    ),
    "system": (
        on_system(TUNED, "Windows", "x86_64"),
        "it was built for Linux on x86_64, and this is Windows on x86_64",
    ),
    "architecture": (
        on_system(TUNED, "Linux", "aarch64"),
        "it was built for Linux on x86_64, and this is Linux on aarch64",
    ),
    "library": (with_settings(TUNED, library="tensorrt-rtx"), "it was built with library tensorrt, not tensorrt-rtx"),
    "precision": (with_settings(TUNED, precision="fp32"), "it was built with precision fp16, not fp32"),
    "batches": (with_settings(TUNED, batches=(1, 16)), "it was built with batches 1, 8, 32, not 1, 16"),
    "workspace": (
        with_settings(TUNED, workspace_bytes=1 << 20),
        "it was built with workspace bytes by default, not 1048576",
    ),
    "level": (with_settings(TUNED, optimization_level=5), "it was built with optimization level 3, not 5"),
    "TF32": (with_settings(TUNED, tf32=True), "it was built with tf32 off, not on"),
    "inputs": (
        replace(TUNED, tensors=("pixels: float32 (N, 3, 8, 8)",)),
        "its inputs and outputs are pixels: uint8 (N, 8, 8, 3); probabilities: float32 (N, 3); "
        "features: float32 (N, 3), not pixels: float32 (N, 3, 8, 8)",
    ),
}
"""Requests that differ from TUNED, each with the sentence that states the difference."""


@pytest.mark.parametrize(("wanted", "sentence"), OTHERS.values(), ids=OTHERS)
def test_an_engine_is_refused_for_any_difference(wanted: EngineRequest, sentence: str) -> None:
    assert differences(TUNED, wanted) == [sentence]
    assert EngineIdentity.of(wanted).key != EngineIdentity.of(TUNED).key


def test_every_field_of_the_settings_is_part_of_the_key() -> None:
    changed = {"library", "precision", "batches", "workspace_bytes", "optimization_level", "tf32"}
    assert changed | {"compute_capabilities"} == set(BuildSettings.__dataclass_fields__), "add it to OTHERS"


def test_an_engine_serves_the_request_that_it_was_built_for() -> None:
    assert differences(TUNED, TUNED) == []
    assert differences(AHEAD, AHEAD) == []


def test_the_most_important_difference_comes_first() -> None:
    wanted = on_card(with_settings(replace(TUNED, graph_sha256="cd" * 32), tf32=True), H100)
    assert [sentence.split(" (")[0] for sentence in differences(TUNED, wanted)] == [
        "it was built for other weights",
        "it was built for NVIDIA A10",
        "it was built with tf32 off, not on",
    ]


def test_the_name_and_the_version_are_not_compared() -> None:
    renamed = replace(TUNED, model="other", version="7")
    assert EngineIdentity.of(renamed) == EngineIdentity.of(TUNED)


@pytest.mark.parametrize("gpu", [A10, L4, RTX_4090])
def test_an_engine_built_ahead_serves_every_gpu_of_its_capabilities(gpu: GpuFacts) -> None:
    assert differences(AHEAD, on_card(AHEAD, gpu)) == []


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (on_card(AHEAD, H100), "it was built for compute capability 8.6, 8.9, this is NVIDIA H100 (9.0)"),
        (
            with_settings(AHEAD, compute_capabilities=("8.9", "12.0")),
            "it was built for compute capability 8.6, 8.9, not for 12.0",
        ),
    ],
)
def test_an_engine_built_ahead_serves_no_other_capability(wanted: EngineRequest, sentence: str) -> None:
    assert differences(AHEAD, wanted) == [sentence]


@pytest.mark.parametrize("name", ["batches", "workspace", "level", "TF32"])
def test_a_minimum_batch_size_allows_other_settings(name: str) -> None:
    assert differences(OTHERS[name][0], replace(TUNED, min_batch_size=16)) == []


@pytest.mark.parametrize("name", ["weights", "version", "card", "driver", "library", "precision", "inputs"])
def test_a_minimum_batch_size_allows_no_other_difference(name: str) -> None:
    wanted, sentence = OTHERS[name]
    assert differences(TUNED, replace(wanted, min_batch_size=16)) == [sentence]


def test_an_engine_for_smaller_batches_is_refused() -> None:
    assert differences(TUNED, replace(TUNED, min_batch_size=33)) == ["it takes batches of up to 32, not of 33"]


def test_an_engine_built_ahead_belongs_to_no_gpu_and_no_driver() -> None:
    here, there = on_card(AHEAD, L4), on_card(AHEAD, RTX_4090)
    assert EngineIdentity.of(here).key == EngineIdentity.of(there).key
    assert EngineIdentity.of(here).card is None


def test_the_order_of_capabilities_does_not_matter() -> None:
    some, turned = (
        EngineIdentity.of(with_settings(AHEAD, compute_capabilities=capabilities))
        for capabilities in (("8.6", "8.9", "12.0"), ("12.0", "8.9", "8.6"))
    )
    assert some.key == turned.key
    assert turned.settings.compute_capabilities == ("8.6", "8.9", "12.0")


@pytest.mark.parametrize(
    ("request_", "gpu", "version", "faults"),
    [
        (TUNED, A10, "11.0.0.114", []),
        (TUNED, None, "11.0.0.114", ["it was built for NVIDIA A10 (8.6), and there is no NVIDIA GPU here"]),
        (AHEAD, L4, None, ["it was built by tensorrt-rtx 1.7.1.116, which is not installed"]),
        (AHEAD, None, "1.7.1.116", ["it was built for compute capability 8.6, 8.9, and there is no NVIDIA GPU here"]),
    ],
)
def test_the_reasons_why_a_machine_cannot_use_an_engine(
    request_: EngineRequest, gpu: GpuFacts | None, version: str | None, faults: list[str]
) -> None:
    assert EngineIdentity.of(request_).faults_on(Host(gpu, "Linux", "x86_64"), version) == faults


def test_an_identity_survives_its_record() -> None:
    identity = EngineIdentity.of(TUNED)
    read = EngineIdentity.model_validate_json(identity.model_dump_json())
    assert read == identity
    assert read.key == identity.key


def test_a_request_describes_its_bundle(colour_bundle: ColourBundle) -> None:
    bundle = colour_bundle()
    settings = BuildSettings("tensorrt-rtx", "fp32")
    request = request_engine(bundle, settings, "1.7", Host.here(L4), min_batch_size=4)
    assert request == EngineRequest(
        model="colours",
        version="1",
        graph_sha256=bundle.manifest.files["model.onnx"],
        tensors=TUNED.tensors,
        settings=settings,
        library_version="1.7",
        host=Host.here(L4),
        min_batch_size=4,
    )
    assert request.compute_capabilities == ("8.9",)


@pytest.mark.parametrize(
    ("settings", "gpu", "sentence"),
    [
        ({"library": "tensorrt"}, None, "tensorrt builds and runs on an NVIDIA GPU only"),
        ({"library": "tensorrt", "compute_capabilities": ("9.0",)}, L4, "builds for this machine's GPU only"),
        ({"library": "tensorrt-rtx"}, None, "name the GPUs to build for with --compute-capability"),
    ],
)
def test_a_request_that_cannot_be_built_is_refused(
    colour_bundle: ColourBundle, settings: dict[str, Any], gpu: GpuFacts | None, sentence: str
) -> None:
    with pytest.raises(EngineUnavailable, match=sentence):
        request_engine(colour_bundle(), BuildSettings(precision="fp32", **settings), "1", Host.here(gpu))


def test_a_graph_that_the_bundle_lacks_is_refused(colour_bundle: ColourBundle) -> None:
    with pytest.raises(BundleError, match="no fp16 artefact"):
        request_engine(colour_bundle(), BuildSettings("tensorrt", "fp16"), "11", Host.here(A10))
