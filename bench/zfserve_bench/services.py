"""Runs the service under test without a worker, on CPUs of its own or on all CPUs."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from zfserve_cli.service_process import ServiceProcess, running_service
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_protos.v1.zfserve_pb2_grpc import VisionServiceStub
from zfserve_runtime.bundle import Precision

from zfserve_bench.config import BenchmarkConfig


def usable_cpus() -> list[int]:
    """Returns the numbers of the CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def classifying_service(
    config: BenchmarkConfig, precision: Precision, folder: Path, cpus: Collection[int] | None = None
) -> Iterator[ServiceProcess]:
    """Runs a service of one precision, without a worker, until the block ends. At its start it compares its
    outputs with the golden ones.

    Args:
        folder: an existing folder for the log.
        cpus: the CPUs that it may use, with at most one thread each; None for all that this process may use. With
            `cpus` the service also gets its own session, as in a container. When the load generator was in the same
            session but on another CPU, Linux 6.18 sometimes let kernel threads beside the service wait for a minute,
            and every call interrupted its engine (docs/benchmarks.md).

    Raises:
        ServiceFailed: the service did not become ready.
    """
    threads = config.threads if cpus is None else min(config.threads, len(cpus))
    flags = ("--no-worker", "--engine", "onnx-cpu", "--precision", precision, "--threads", str(threads))
    own_session = cpus is not None
    with running_service(config.bundle.folder, folder, *flags, cpus=cpus, own_session=own_session) as service:
        with grpc.insecure_channel(service.address) as channel:
            engine = VisionServiceStub(channel).DescribeModel(pb.DescribeModelRequest(), timeout=10).engine
        assert (engine.runtime, engine.precision, engine.threads) == ("onnxruntime", precision, threads), engine
        yield service
