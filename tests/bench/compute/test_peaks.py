from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from zfserve_bench.compute.peaks import CpuPeaks, times_per_s


def ticking(*times: float) -> Iterator[float]:
    yield from times


def test_counts_whole_runs_over_the_time_they_took() -> None:
    clock = ticking(100.0, 100.0, 100.4, 100.8, 101.6)
    done = []
    assert times_per_s(lambda: done.append(1), 1.5, now=lambda: next(clock)) == pytest.approx(3 / 1.6)
    assert len(done) == 3


def test_runs_once_even_where_there_is_no_time() -> None:
    clock = ticking(5.0, 5.0, 5.25)
    done = []
    assert times_per_s(lambda: done.append(1), 0.0, now=lambda: next(clock)) == 4
    assert len(done) == 1


def test_the_cpu_has_limits_in_every_arithmetic() -> None:
    before = torch.get_num_threads()
    with closing(CpuPeaks(threads=1)) as limits:
        found = [limits.flops_per_s("fp32", 0), limits.flops_per_s("int8", 0), limits.bytes_per_s(0)]
        if torch.cpu.get_capabilities().get("avx512_bf16"):  # elsewhere it takes seconds
            found.append(limits.flops_per_s("bf16", 0))
    assert all(0 < value < float("inf") for value in found)
    assert torch.get_num_threads() == before
