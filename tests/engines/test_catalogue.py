"""Tests the records of all kinds of engines, and the error of each opener if its engine is unavailable."""

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
def test_engines_on_the_cpu_open_all_instances_and_report_their_steps(options: EngineOptions, name: EngineName) -> None:
    steps: list[Step] = []
    engines = ENGINE_KINDS[name].open(options, "fp32", steps.append)
    assert [(engine.info.threads, engine.info.max_batch_size) for engine in engines] == [(1, 2), (1, 2)]
    assert steps[0] == Step(name, Phase.LOADING)
    assert steps[1:] == [Step(name, Phase.WARMING, share) for share in (0.0, 0.5)] * 2
    for engine in engines:
        engine.close()


def test_bf16_runs_only_the_fp32_graph(options: EngineOptions) -> None:
    with pytest.raises(EngineUnavailable, match="leave out --precision, or choose openvino for int8"):
        ENGINE_KINDS["openvino-bf16"].open(options, "int8", lambda step: None)


@needs_bf16
def test_bf16_opens_where_the_cpu_has_it(options: EngineOptions) -> None:
    steps: list[Step] = []
    engines = ENGINE_KINDS["openvino-bf16"].open(options, "fp32", steps.append)
    assert [engine.info.provider for engine in engines] == ["CPU bf16"] * 2
    assert {step.engine for step in steps} == {"openvino-bf16"}


@pytest.mark.skipif(detect_gpu() is not None, reason="there is a GPU, and tests/gpu opens the engines on it")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda"])
def test_without_a_gpu_each_engine_on_a_gpu_says_what_is_missing(options: EngineOptions, name: EngineName) -> None:
    with pytest.raises(EngineUnavailable, match=r"no NVIDIA driver|no GPU|has no \w+ExecutionProvider|cannot start"):
        ENGINE_KINDS[name].open(options, "fp32", lambda step: None)
