"""Tests the parts of the benchmark `scale`. The whole takes minutes."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
from zfserve_bench.fleet.pinned_engine import PinnedEngine, images_per_s
from zfserve_bench.fleet.scale import evenness
from zfserve_bench.services import usable_cpus
from zfserve_runtime.bundle import Bundle


@pytest.mark.parametrize(
    ("answered", "share"), [([50.0, 50.0], 1.0), ([25.0, 75.0], 0.5), ([0.0, 10.0], 0.0), ([7.0], 1.0)]
)
def test_evenness_is_1_if_all_replicas_answer_alike(answered: list[float], share: float) -> None:
    assert evenness(answered) == share


def test_engines_run_at_the_same_time_in_their_own_processes(colour_bundle: Callable[..., Bundle]) -> None:
    bundle = colour_bundle()
    with ExitStack() as stack:
        engines = [stack.enter_context(PinnedEngine(bundle, "fp32", usable_cpus()[0])) for _ in range(2)]
        for _ in range(2):
            assert images_per_s(engines, 0.0) > 0
