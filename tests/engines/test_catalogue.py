"""What each opener says where its engine cannot be had, and how compiled engines come to be."""

import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from fakes.bf16 import needs_bf16
from zfserve_engines.catalogue import ENGINE_KINDS
from zfserve_engines.contract import EngineName, EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts, detect_gpu
from zfserve_engines.kind import EngineKind
from zfserve_engines.opening import EngineOptions, Phase, Step
from zfserve_engines.tensorrt.kinds import choose_batches, obtain_compiled
from zfserve_engines.tensorrt.library import load_library
from zfserve_runtime.bundle import Bundle

ROOT = Path(__file__).parents[2]
ColourBundle = Callable[..., Bundle]

L4 = GpuFacts("NVIDIA L4", "8.9", "580.65.06", "13.0", 24 * 2**30)


@pytest.fixture
def options(colour_bundle: ColourBundle) -> EngineOptions:
    return EngineOptions(colour_bundle(), 2, threads=2, instances=2)


def test_the_settings_name_every_kind_in_the_order_of_the_catalogue() -> None:
    assert tuple(ENGINE_KINDS) == get_args(EngineName)


def test_naming_an_engine_imports_no_library_of_an_engine() -> None:
    program = "import sys, zfserve_engines.catalogue; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "PIL", "rich"}
    assert not heavy & {name.partition(".")[0] for name in answer.stdout.split()}


@pytest.mark.parametrize("kind", ENGINE_KINDS.values(), ids=ENGINE_KINDS)
def test_a_package_that_is_missing_is_named_with_its_extra(kind: EngineKind) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert kind.package.extra in extras
    missing = replace(kind.package, module="no_such_module")
    with pytest.raises(EngineUnavailable, match=rf"{kind.package.title} is not installed; .*\[{kind.package.extra}\]"):
        missing.load()


def test_without_onnx_runtime_its_engines_name_the_extra(
    options: EngineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for kind, extra in ((ENGINE_KINDS["onnx-cpu"], "server"), (ENGINE_KINDS["onnx-cuda"], "server-gpu")):
        with pytest.raises(EngineUnavailable, match=rf"ONNX Runtime is not installed; .*\[{extra}\]"):
            kind.open(options, "fp32", lambda step: None)


@pytest.mark.parametrize("name", ["onnx-cpu", "openvino"])
def test_a_cpu_opens_as_many_instances_as_asked_for_and_tells_its_steps(
    options: EngineOptions, name: EngineName
) -> None:
    steps: list[Step] = []
    engines = ENGINE_KINDS[name].open(options, "fp32", steps.append)
    assert [(engine.info.threads, engine.info.max_batch_size) for engine in engines] == [(1, 2), (1, 2)]
    assert steps[0] == Step(name, Phase.LOADING)
    assert steps[1:] == [Step(name, Phase.WARMING, share) for share in (0.0, 0.5)] * 2
    for engine in engines:
        engine.close()


def test_bf16_is_for_the_fp32_graph_alone(options: EngineOptions) -> None:
    with pytest.raises(EngineUnavailable, match="leave --precision out, or take openvino for int8"):
        ENGINE_KINDS["openvino-bf16"].open(options, "int8", lambda step: None)


@needs_bf16
def test_bf16_opens_where_the_cpu_has_it(options: EngineOptions) -> None:
    steps: list[Step] = []
    engines = ENGINE_KINDS["openvino-bf16"].open(options, "fp32", steps.append)
    assert [engine.info.provider for engine in engines] == ["CPU bf16"] * 2
    assert {step.engine for step in steps} == {"openvino-bf16"}


@pytest.mark.skipif(detect_gpu() is not None, reason="there is a GPU, and tests/gpu opens the engines on it")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda"])
def test_without_a_gpu_each_engine_for_one_says_what_is_missing(options: EngineOptions, name: EngineName) -> None:
    with pytest.raises(EngineUnavailable, match=r"no NVIDIA driver|no GPU|has no \w+ExecutionProvider|cannot start"):
        ENGINE_KINDS[name].open(options, "fp32", lambda step: None)


@pytest.mark.parametrize(
    ("max_batch_size", "batches"), [(1, (1,)), (4, (1, 4)), (16, (1, 8, 16)), (32, (1, 8, 32)), (40, (1, 8, 32, 40))]
)
def test_an_engine_is_tuned_for_the_usual_batches_and_the_largest(
    max_batch_size: int, batches: tuple[int, ...]
) -> None:
    assert choose_batches(max_batch_size) == batches


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
class TestCompiled:
    """Compiled in earnest by TensorRT for RTX, for a card that need not be here."""

    def test_once_and_then_found(self, options: EngineOptions) -> None:
        steps: list[Step] = []
        stored = obtain_compiled(load_library("tensorrt-rtx"), L4, options, "fp32", steps.append)
        assert stored.record.identity.settings.batches == (1, 2)
        assert stored.record.identity.settings.compute_capabilities == ("8.9",)
        assert {(step.engine, step.phase) for step in steps} == {("tensorrt-rtx", Phase.COMPILING)}
        shares = [step.share or 0.0 for step in steps]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        steps.clear()
        again = obtain_compiled(load_library("tensorrt-rtx"), L4, options, "fp32", steps.append)
        assert again.plan == stored.plan
        assert steps == []

    def test_a_start_that_is_cancelled_stops_the_compilation_and_keeps_nothing(self, options: EngineOptions) -> None:
        class Cancelled(BaseException):
            pass

        def report(step: Step) -> None:
            raise Cancelled

        with pytest.raises(Cancelled):
            obtain_compiled(load_library("tensorrt-rtx"), L4, options, "fp32", report)
        assert list((options.bundle.folder / "engines").iterdir()) == []

    def test_a_graph_that_cannot_be_compiled_is_a_reason_and_no_crash(
        self, options: EngineOptions, tmp_path: Path
    ) -> None:
        options.bundle.artefact("fp32").write_bytes(b"no graph")
        with pytest.raises(EngineUnavailable, match=r"model\.onnx"):
            obtain_compiled(load_library("tensorrt-rtx"), L4, options, "fp32", lambda step: None)
