"""What each opener says where its engine cannot be had, and how compiled engines come to be."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from fakes.bf16 import needs_bf16
from zfserve_engines.catalogue import (
    OPENERS,
    EngineName,
    Opening,
    Phase,
    Step,
    choose_batches,
    obtain_compiled,
)
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts, detect_gpu
from zfserve_engines.tensorrt.library import load_library
from zfserve_runtime.bundle import Bundle

ColourBundle = Callable[..., Bundle]

L4 = GpuFacts("NVIDIA L4", "8.9", "580.65.06", "13.0", 24 * 2**30)


@pytest.fixture
def opening(colour_bundle: ColourBundle) -> Opening:
    return Opening(colour_bundle(), 2, threads=2, instances=2, cache=None, on_refusal="rebuild")


def test_every_engine_has_an_opener() -> None:
    assert set(OPENERS) == set(get_args(EngineName))


@pytest.mark.parametrize("name", ["onnx-cpu", "openvino"])
def test_a_cpu_opens_as_many_instances_as_asked_for_and_tells_its_steps(opening: Opening, name: EngineName) -> None:
    steps: list[Step] = []
    engines = OPENERS[name](opening, "fp32", steps.append)
    assert [(engine.info.threads, engine.info.max_batch_size) for engine in engines] == [(1, 2), (1, 2)]
    assert steps[0] == Step(name, Phase.LOADING)
    assert steps[1:] == [Step(name, Phase.WARMING, share) for share in (0.0, 0.5)] * 2
    for engine in engines:
        engine.close()


def test_bf16_is_for_the_fp32_graph_alone(opening: Opening) -> None:
    with pytest.raises(EngineUnavailable, match="leave --precision out, or take openvino for int8"):
        OPENERS["openvino-bf16"](opening, "int8", lambda step: None)


@needs_bf16
def test_bf16_opens_where_the_cpu_has_it(opening: Opening) -> None:
    steps: list[Step] = []
    engines = OPENERS["openvino-bf16"](opening, "fp32", steps.append)
    assert [engine.info.provider for engine in engines] == ["CPU bf16"] * 2
    assert {step.engine for step in steps} == {"openvino-bf16"}


@pytest.mark.skipif(detect_gpu() is not None, reason="there is a GPU, and tests/gpu opens the engines on it")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda"])
def test_without_a_gpu_each_engine_for_one_says_what_is_missing(opening: Opening, name: EngineName) -> None:
    with pytest.raises(EngineUnavailable, match=r"no NVIDIA driver|no GPU|has no \w+ExecutionProvider|cannot start"):
        OPENERS[name](opening, "fp32", lambda step: None)


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

    def test_once_and_then_found(self, opening: Opening) -> None:
        steps: list[Step] = []
        stored = obtain_compiled(load_library("tensorrt-rtx"), L4, opening, "fp32", steps.append)
        assert stored.record.identity.settings.batches == (1, 2)
        assert stored.record.identity.settings.compute_capabilities == ("8.9",)
        assert {(step.engine, step.phase) for step in steps} == {("tensorrt-rtx", Phase.COMPILING)}
        shares = [step.share or 0.0 for step in steps]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        steps.clear()
        again = obtain_compiled(load_library("tensorrt-rtx"), L4, opening, "fp32", steps.append)
        assert again.plan == stored.plan
        assert steps == []

    def test_a_start_that_is_cancelled_stops_the_compilation_and_keeps_nothing(self, opening: Opening) -> None:
        class Cancelled(BaseException):
            pass

        def report(step: Step) -> None:
            raise Cancelled

        with pytest.raises(Cancelled):
            obtain_compiled(load_library("tensorrt-rtx"), L4, opening, "fp32", report)
        assert list((opening.bundle.folder / "engines").iterdir()) == []

    def test_a_graph_that_cannot_be_compiled_is_a_reason_and_no_crash(self, opening: Opening, tmp_path: Path) -> None:
        opening.bundle.artefact("fp32").write_bytes(b"no graph")
        with pytest.raises(EngineUnavailable, match=r"model\.onnx"):
            obtain_compiled(load_library("tensorrt-rtx"), L4, opening, "fp32", lambda step: None)
