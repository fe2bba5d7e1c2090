"""Tests the engine that `auto` chooses on a machine with a GPU."""

from pathlib import Path

import pytest
from zfserve_engines.catalogue import ENGINE_KINDS
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.opening import EngineOptions
from zfserve_runtime.bundle import Bundle
from zfserve_server.models.engine_choice import choose_engine

pytestmark = pytest.mark.gpu


def test_auto_takes_the_gpu_and_gives_a_reason_for_every_other_engine(
    gpu: GpuFacts, gpu_bundle: Bundle, tmp_path: Path
) -> None:
    options = EngineOptions(gpu_bundle, 8, threads=4, cache=tmp_path)
    choice = choose_engine("auto", "fp32", options, lambda step: None)
    try:
        assert choice.name != "onnx-cpu", choice.not_taken
        assert choice.instances[0].info.device == gpu.name
        assert {choice.name, *(entry.engine for entry in choice.not_taken)} == ENGINE_KINDS.keys()
    finally:
        choice.close()
