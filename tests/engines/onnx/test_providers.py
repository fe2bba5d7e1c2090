"""Tests the options of the providers. tests/gpu checks on a GPU that the libraries accept them."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.onnx.providers import CPU, CudaProvider, TensorRTProvider, Workload, engine_folder
from zfserve_runtime.bundle import Precision

GPU = GpuFacts("NVIDIA L4", "8.9", "580.65.06", "13.0", 23_000_000_000)


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"weights")
    return Workload(graph, "fp16", (224, 200, 3), 16)


def test_every_chain_ends_on_the_cpu(workload: Workload) -> None:
    assert [name for name, _ in CPU.chain(workload, "1.31")] == ["CPUExecutionProvider"]
    assert [name for name, _ in CudaProvider().chain(workload, "1.31")] == [
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert [name for name, _ in TensorRTProvider().chain(workload, "1.31")] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]


def test_cuda_computes_fp32_in_full_precision_and_fp16_on_tensor_cores() -> None:
    fp32, fp16 = CudaProvider().options("fp32"), CudaProvider().options("fp16")
    assert (fp32["use_tf32"], fp32["prefer_nhwc"]) == ("0", "0")
    assert (fp16["use_tf32"], fp16["prefer_nhwc"]) == ("1", "1")
    assert fp32["arena_extend_strategy"] == fp16["arena_extend_strategy"] == "kSameAsRequested"


def test_tensorrt_has_one_profile_for_all_batches(workload: Workload) -> None:
    options = TensorRTProvider().options(workload, folder=None)
    assert options["trt_profile_min_shapes"] == "pixels:1x224x200x3"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "pixels:16x224x200x3"
    assert "trt_engine_cache_enable" not in options


@pytest.mark.parametrize(
    ("precision", "fp16", "int8"),
    [("fp32", "False", "False"), ("fp16", "True", "False"), ("int8-symmetric", "False", "True")],
)
def test_tensorrt_may_use_the_precision_of_the_graph(
    workload: Workload, precision: Precision, fp16: str, int8: str
) -> None:
    options = TensorRTProvider().options(replace(workload, precision=precision), None)
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == (fp16, int8)


def test_a_graph_that_tensorrt_does_not_compile_is_refused(workload: Workload) -> None:
    with pytest.raises(EngineUnavailable, match=r"compiles fp32, fp16, int8-symmetric, not int8;"):
        TensorRTProvider().chain(replace(workload, precision="int8"), "1.31")


def test_engines_of_different_workloads_never_share_a_folder(workload: Workload, tmp_path: Path) -> None:
    other_graph = tmp_path / "other.onnx"
    other_graph.write_bytes(b"other weights")
    folders = {
        engine_folder(tmp_path, *changed)
        for changed in (
            (workload, GPU, "1.31.1"),
            (replace(workload, graph=other_graph), GPU, "1.31.1"),
            (replace(workload, max_batch_size=8), GPU, "1.31.1"),
            (replace(workload, image_shape=(224, 224, 3)), GPU, "1.31.1"),
            (workload, replace(GPU, name="NVIDIA L40"), "1.31.1"),
            (workload, replace(GPU, driver_version="590.1"), "1.31.1"),
            (workload, GPU, "1.32.0"),
        )
    }
    assert len(folders) == 7
    renamed = tmp_path / "renamed.onnx"
    renamed.write_bytes(b"weights")
    same = engine_folder(tmp_path, replace(workload, graph=renamed), GPU, "1.31.1")
    assert same == engine_folder(tmp_path, workload, GPU, "1.31.1")


def test_engines_are_kept_in_their_folder(workload: Workload, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "abc"
    options = TensorRTProvider(tmp_path / "cache").options(workload, folder)
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"
    assert options["trt_engine_cache_path"] == str(folder)
    assert options["trt_timing_cache_path"] == str(folder.parent), "timings serve every graph on this card"


def test_without_a_known_card_engines_are_not_kept(
    workload: Workload, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TensorRTProvider(tmp_path / "cache", find_gpu=lambda: None)
    with caplog.at_level(logging.WARNING):
        (_, options), *_ = provider.chain(workload, "1.31.1")
    assert "trt_engine_cache_enable" not in options
    assert "not kept" in caplog.text


def test_a_cache_that_cannot_be_written_keeps_nothing(
    workload: Workload, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    provider = TensorRTProvider(tmp_path / "cache", find_gpu=lambda: GPU)
    with caplog.at_level(logging.WARNING):
        (_, options), *_ = provider.chain(workload, "1.31.1")
    assert "trt_engine_cache_enable" not in options
    assert "cannot be made" in caplog.text
