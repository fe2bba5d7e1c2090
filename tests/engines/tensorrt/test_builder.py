"""Tests real builds by TensorRT for RTX, which needs no GPU. The graphs are small enough for a fraction of a second.

Our networks are compiled in tests/export/test_compiled_networks.py.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.batch_sizes import BatchProfile, plan_profiles
from zfserve_engines.tensorrt.build_progress import TOTAL
from zfserve_engines.tensorrt.build_summary import BuildSummary, LayerSummary, TensorSummary
from zfserve_engines.tensorrt.builder import BuildFailed, build_engine, configure
from zfserve_engines.tensorrt.library import load_library
from zfserve_engines.tensorrt.settings import BuildSettings
from zfserve_runtime.bundle import Bundle

ColourBundle = Callable[..., Bundle]
WORKSPACE_BYTES = 256 << 20


def settings(**changes: Any) -> BuildSettings:
    fields: dict[str, Any] = {"batches": (1, 4), "compute_capabilities": ("8.9",)} | changes
    return BuildSettings("tensorrt-rtx", "fp32", **fields)


@pytest.fixture
def graph(colour_bundle: ColourBundle) -> Path:
    return colour_bundle().artefact("fp32")


def write_graph(file: Path, operator: str, batch: int | str = "N", domain: str = "", **attributes: Any) -> Path:
    """Writes a graph of a Cast and one `operator`, whose node is named `odd_one`."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node(operator, ["values"], ["features"], name="odd_one", domain=domain, **attributes),
    ]
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, 4, 4])]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("somebodys.own", 1)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "odd", inputs, outputs), opset_imports=opsets, ir_version=10), file
    )
    return file


def test_builds_and_reads_back_what_was_built(graph: Path) -> None:
    built = build_engine(graph, settings(compute_capabilities=("8.6", "8.9")))
    summary = built.summary
    assert summary.library.startswith("TensorRT for RTX 1.")
    assert summary.compute_capabilities == ("8.6", "8.9")
    assert summary.inputs == (TensorSummary("pixels", "uint8", (-1, 8, 8, 3)),)
    assert summary.outputs == (
        TensorSummary("probabilities", "float32", (-1, 3)),
        TensorSummary("features", "float32", (-1, 3)),
    )
    assert summary.profiles == (BatchProfile(1, 1), BatchProfile(2, 4))
    kinds = [(layer.kind, layer.precision) for layer in summary.layers]
    assert kinds[0] == ("CAST", "uint8")
    assert ("REDUCE", "float32") in kinds
    assert summary.computing_layers() == {("SOFTMAX", "float32"): 1}
    assert summary.plan_bytes == len(built.plan) > 0
    assert summary.seconds > 0
    assert built.timing_cache == b""


def test_a_summary_survives_json(graph: Path) -> None:
    summary = build_engine(graph, settings()).summary
    document = summary.to_json()
    assert document["inputs"] == [{"name": "pixels", "dtype": "uint8", "shape": [-1, 8, 8, 3]}]
    assert BuildSummary.from_json(document) == summary
    assert isinstance(BuildSummary.from_json(document).layers[0], LayerSummary)


def test_without_targets_it_builds_for_every_gpu_from_ampere_on(graph: Path) -> None:
    summary = build_engine(graph, settings(compute_capabilities=())).summary
    assert summary.compute_capabilities == load_library("tensorrt-rtx").default_targets


def test_progress_never_decreases_and_ends_at_the_total(graph: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    build_engine(graph, settings(), lambda *step: reports.append(step))
    shares = [done for _, done, _ in reports]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, TOTAL)
    assert len({phase for phase, _, _ in reports}) > 2
    assert {total for _, _, total in reports} == {TOTAL}


@pytest.mark.parametrize("tf32", [False, True])
def test_every_setting_reaches_the_builder(tf32: bool) -> None:
    library = load_library("tensorrt-rtx")
    module, builder = library.module, library.module.Builder(library.logger)
    assert builder.create_builder_config().get_flag(module.BuilderFlag.TF32), "on unless cleared"
    chosen = settings(
        compute_capabilities=("7.5", "12.0"), workspace_bytes=WORKSPACE_BYTES, optimization_level=5, tf32=tf32
    )
    config = configure(library, builder, chosen)
    assert config.get_flag(module.BuilderFlag.TF32) == tf32
    assert config.builder_optimization_level == 5
    assert config.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE) == WORKSPACE_BYTES
    targets = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert targets == [module.ComputeCapability.SM75, module.ComputeCapability.SM120]


def test_a_profile_begins_where_the_one_before_it_ends() -> None:
    assert plan_profiles((1, 8, 32)) == (BatchProfile(1, 1), BatchProfile(2, 8), BatchProfile(9, 32))
    assert plan_profiles((16,)) == (BatchProfile(1, 16),)


def fails(graph: Path, chosen: BuildSettings) -> str:
    with pytest.raises(BuildFailed) as failed:
        build_engine(graph, chosen)
    sentence = str(failed.value).replace(str(load_library("tensorrt-rtx")), "TensorRT")
    assert "\n" not in sentence
    return sentence


def test_an_operator_that_is_not_supported(tmp_path: Path) -> None:
    assert fails(write_graph(tmp_path / "model.onnx", "Det"), settings()) == (
        "TensorRT does not support the operator Det of model.onnx in the node odd_one"
    )


def test_an_unknown_operator(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "model.onnx", "Frobnicate", domain="somebodys.own")
    assert fails(graph, settings()).startswith(
        "TensorRT does not support the operator Frobnicate of model.onnx in the node odd_one ("
    )


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"not a graph")
    assert fails(graph, settings()) == "model.onnx is not an ONNX graph that TensorRT can read; export the bundle again"
    graph.unlink()
    assert fails(graph, settings()) == f"there is no graph at {graph}"


def test_a_graph_with_a_fixed_batch(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "model.onnx", "Relu", batch=2)
    assert (
        fails(graph, settings())
        == "the input pixels has a fixed batch of 2, which cannot be compiled; serve it with another engine"
    )


def test_too_little_workspace(graph: Path) -> None:
    sentence = fails(graph, settings(workspace_bytes=1))
    assert sentence.startswith(
        "TensorRT cannot build model.onnx with a workspace of 1 bytes; allow more with --workspace ("
    )


def test_a_compute_capability_that_the_library_does_not_support(graph: Path) -> None:
    sentence = fails(graph, settings(compute_capabilities=("8.9", "9.0", "0.1")))
    assert sentence.startswith("TensorRT cannot build for compute capability 9.0, 0.1, only for 7.5, 8.0, ")


def test_a_layer_without_a_kernel_for_the_gpu(tmp_path: Path) -> None:
    """Turing has no kernel for fp32 matrix products. The error quotes TensorRT without the locations in its source."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["values", "weight"], ["features"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 64])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(np.ones((64, 64), np.float32), "weight")],
    )
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    assert build_engine(file, settings()).plan
    sentence = fails(file, settings(compute_capabilities=("7.5",)))
    assert sentence.startswith("TensorRT cannot build model.onnx: ")
    assert "for Turing (SM75): FP32 GEMM is not supported" in sentence
    assert "/_src/" not in sentence


def test_an_interrupt_stops_the_build(graph: Path) -> None:
    """A signal during a build raises KeyboardInterrupt in this thread, not in a callback."""
    phases: list[str] = []

    def interrupt(phase: str, done: int, total: int) -> None:
        if not phases:
            os.kill(os.getpid(), signal.SIGINT)
        phases.append(phase)

    with pytest.raises(KeyboardInterrupt):
        build_engine(graph, settings(), interrupt)
    assert build_engine(graph, settings()).plan, "the library still builds"


def test_an_error_of_the_callback_stops_the_build_and_is_raised(graph: Path) -> None:
    reports: list[int] = []

    def give_up(phase: str, done: int, total: int) -> None:
        reports.append(done)
        if done > TOTAL // 4:
            raise TimeoutError("the start takes too long")

    with pytest.raises(TimeoutError, match="the start takes too long"):
        build_engine(graph, settings(), give_up)
    assert TOTAL // 4 < reports[-1] < TOTAL
    assert [done for done in reports if done > TOTAL // 4] == reports[-1:], "the callback was not called again"


STAND_IN = """
import sys, pathlib, warnings, tensorrt_rtx
warnings.filterwarnings("ignore", "Use Deprecated in TensorRT-RTX", DeprecationWarning)  # its timing cache does nothing
sys.modules["tensorrt"] = tensorrt_rtx
from zfserve_engines.tensorrt.builder import build_engine
from zfserve_engines.tensorrt.settings import BuildSettings
graph, settings = pathlib.Path(sys.argv[1]), BuildSettings("tensorrt", "fp32", (1, 4), ("9.0",))
first = build_engine(graph, settings)
second = build_engine(graph, settings, timing_cache=first.timing_cache)
print(first.summary.library, len(first.timing_cache) > 0, len(second.plan) > 0)
"""


def test_the_calls_that_only_tensorrt_receives(graph: Path) -> None:
    """TensorRT cannot be installed here. So another process runs TensorRT for RTX under the name of TensorRT.

    It checks that the calls exist in the API and that no targets are set. It does not check that TensorRT builds.
    """
    done = subprocess.run(
        [sys.executable, "-c", STAND_IN, graph], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stdout == f"TensorRT {load_library('tensorrt-rtx').version} True True\n", done.stderr


def test_a_library_that_is_not_installed(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineUnavailable, match="TensorRT is not installed"):
        build_engine(graph, BuildSettings("tensorrt", "fp32"))
