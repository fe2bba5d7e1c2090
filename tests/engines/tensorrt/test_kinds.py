"""Tests how the opener of the engines on TensorRT gets a compiled engine."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.opening import EngineOptions, Phase, Step
from zfserve_engines.tensorrt.kinds import choose_batches, find_or_compile
from zfserve_engines.tensorrt.library import load_library
from zfserve_runtime.bundle import Bundle

L4 = GpuFacts("NVIDIA L4", "8.9", "580.65.06", "13.0", 24 * 2**30)


@pytest.fixture
def options(colour_bundle: Callable[..., Bundle]) -> EngineOptions:
    return EngineOptions(colour_bundle(), 2, threads=2, instances=2)


@pytest.mark.parametrize(
    ("max_batch_size", "batches"), [(1, (1,)), (4, (1, 4)), (16, (1, 8, 16)), (32, (1, 8, 32)), (40, (1, 8, 32, 40))]
)
def test_an_engine_is_tuned_for_the_usual_batches_and_the_largest(
    max_batch_size: int, batches: tuple[int, ...]
) -> None:
    assert choose_batches(max_batch_size) == batches


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
class TestCompiled:
    """Compiles with TensorRT for RTX. The target GPU need not be in this machine."""

    def test_an_engine_is_compiled_once_and_then_found(self, options: EngineOptions) -> None:
        steps: list[Step] = []
        stored = find_or_compile(load_library("tensorrt-rtx"), L4, options, "fp32", steps.append)
        assert stored.record.identity.settings.batches == (1, 2)
        assert stored.record.identity.settings.compute_capabilities == ("8.9",)
        assert {(step.engine, step.phase) for step in steps} == {("tensorrt-rtx", Phase.COMPILING)}
        shares = [step.share or 0.0 for step in steps]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        steps.clear()
        again = find_or_compile(load_library("tensorrt-rtx"), L4, options, "fp32", steps.append)
        assert again.plan == stored.plan
        assert steps == []

    def test_a_start_that_is_cancelled_stops_the_compilation_and_keeps_nothing(self, options: EngineOptions) -> None:
        class Cancelled(BaseException):
            pass

        def report(step: Step) -> None:
            raise Cancelled

        with pytest.raises(Cancelled):
            find_or_compile(load_library("tensorrt-rtx"), L4, options, "fp32", report)
        assert list((options.bundle.folder / "engines").iterdir()) == []

    def test_a_graph_that_cannot_be_compiled_makes_the_engine_unavailable(
        self, options: EngineOptions, tmp_path: Path
    ) -> None:
        options.bundle.artefact("fp32").write_bytes(b"no graph")
        with pytest.raises(EngineUnavailable, match=r"model\.onnx"):
            find_or_compile(load_library("tensorrt-rtx"), L4, options, "fp32", lambda step: None)
