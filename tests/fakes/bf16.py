"""Asks OpenVINO whether this CPU computes in bfloat16. Some tests need such a CPU, and one test needs another CPU."""

import openvino
import pytest

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16")
