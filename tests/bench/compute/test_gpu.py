"""Tests the parts of the GPU benchmark that run without a GPU: its PyTorch baseline computes the bundle's network."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from zfserve_bench.compute.gpu import TorchClassifier, check_torch, measure_gpu
from zfserve_bench.config import BenchmarkConfig
from zfserve_engines.cuda.gpu import detect_gpu
from zfserve_engines.golden import load_golden
from zfserve_runtime.bundle import Bundle
from zfserve_runtime.errors import EngineFailed

CPU = torch.device("cpu")


def test_pytorch_gives_the_golden_outputs(network_bundle: Bundle) -> None:
    classifier = TorchClassifier(network_bundle, CPU, torch.float32, compiled=False)
    check_torch(classifier, network_bundle)
    golden = load_golden(network_bundle)
    together = classifier.run(golden.pixels)
    assert together.dtype == np.float32
    assert together == pytest.approx(golden.probabilities["fp32"], abs=1e-4)


def test_a_pytorch_network_with_other_outputs_is_refused(network_bundle: Bundle) -> None:
    spec = network_bundle.manifest.input
    darker = network_bundle.manifest.model_copy(
        update={"input": spec.model_copy(update={"mean": tuple(value + 0.3 for value in spec.mean)})}
    )
    classifier = TorchClassifier(replace(network_bundle, manifest=darker), CPU, torch.float32, compiled=False)
    with pytest.raises(EngineFailed, match=r"PyTorch in torch\.float32 differs"):
        check_torch(classifier, network_bundle)


@pytest.mark.skipif(detect_gpu() is not None, reason="there is a GPU here")
def test_without_a_gpu_the_report_says_so(
    network_bundle: Bundle, config_of: Callable[[Bundle], BenchmarkConfig]
) -> None:
    report = measure_gpu(config_of(network_bundle))
    assert report.findings == ()
    assert report.notes == ("Not measured: there is no NVIDIA GPU here.",)
