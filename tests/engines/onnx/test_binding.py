"""Tests bound sessions with tensors in CPU memory. It needs no GPU."""

from collections.abc import Callable
from itertools import cycle

import numpy as np
import onnxruntime
import pytest
from zfserve_engines.onnx.binding import BoundSessions, bound_sizes
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_runtime.bundle import Bundle


@pytest.fixture
def bundle(colour_bundle: Callable[..., Bundle]) -> Bundle:
    return colour_bundle()


def bind(bundle: Bundle, largest: int, sessions: int = 1) -> BoundSessions:
    opened = [
        onnxruntime.InferenceSession(bundle.artefact("fp32"), providers=["CPUExecutionProvider"])
        for _ in range(sessions)
    ]
    host = np.zeros((largest, 8, 8, 3), np.uint8)
    by_size = dict(zip(bound_sizes(largest), cycle(opened), strict=False))
    return BoundSessions(by_size, "cpu", {"probabilities": 3, "features": 3}, host)


@pytest.mark.parametrize("count", [1, 5, 7])
@pytest.mark.parametrize("sessions", [1, 6])
def test_bound_sessions_give_the_outputs_of_an_unbound_session(bundle: Bundle, count: int, sessions: int) -> None:
    """A batch of five is padded to six."""
    assert bound_sizes(7) == (1, 2, 3, 4, 6, 7)
    bound = bind(bundle, 7, sessions)
    pixels = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)
    probabilities, features = bound.run(pixels)
    expected = OnnxEngine(bundle, "fp32", threads=1, max_batch_size=7).run(pixels)
    np.testing.assert_array_equal(probabilities, expected.probabilities)
    np.testing.assert_array_equal(features, expected.features)


def test_outputs_outlive_the_next_batch(bundle: Bundle) -> None:
    bound = bind(bundle, 2)
    _, black = bound.run(np.zeros((2, 8, 8, 3), np.uint8))
    _, white = bound.run(np.full((2, 8, 8, 3), 255, np.uint8))
    assert not black.any()
    assert (white == 255).all()
