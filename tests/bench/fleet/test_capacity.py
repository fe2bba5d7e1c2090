"""Tests the formulas of docs/capacity.md with examples computed by hand."""

import pytest
from zfserve_bench.fleet.capacity import Measured, plan

MEASURED = Measured("int8", 100, cpus=4, explanations_per_s=5, server_mb=300, worker_mb=600, bytes_per_image=50_000)
"""A CPU does 25 images/s, 15 of them planned. A worker with two CPUs explains 2.5 photos/s, 1.5 of them planned."""


def test_a_small_load_needs_the_minimum_of_each() -> None:
    needed = plan(MEASURED, 3_600)
    assert needed.cpus == pytest.approx(1 / 15)
    assert (needed.replicas, needed.workers, needed.nodes) == (2, 2, 1)
    assert needed.memory_gb == pytest.approx((2 * 300 + 2 * 600) * 1.5 / 1000)
    assert needed.mbit_per_s == pytest.approx(0.4)


def test_a_thousand_images_a_second() -> None:
    needed = plan(MEASURED, 3_600_000)
    assert needed.cpus == pytest.approx(1000 / 15)  # 66.7
    assert needed.replicas == 34  # two CPUs each
    assert needed.workers == 7  # ten photos/s explained, over 1.5
    assert needed.nodes == 6  # 82 CPUs, over 15
    assert needed.memory_gb == pytest.approx((34 * 300 + 7 * 600) * 1.5 / 1000)
    assert needed.mbit_per_s == pytest.approx(400)


def test_a_replica_is_added_only_when_the_load_exceeds_the_last() -> None:
    assert plan(MEASURED, 90 * 3_600).replicas == 3  # 6 CPUs
    assert plan(MEASURED, 90.1 * 3_600).replicas == 4
