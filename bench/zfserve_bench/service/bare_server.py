"""Runs a minimal gRPC server in Python, as the baseline for the latency of the service.

`bare_server` starts `python -m zfserve_bench.service.bare_server BUNDLE PRECISION THREADS`. The process answers one
call at a time by one run of the engine in a thread. It has no batches, limits, checks, metrics or logs.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_protos.methods import CLASSIFY
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Precision, load_bundle
from zfserve_runtime.tuning import disable_event_engine_listener

from zfserve_bench.config import BenchmarkConfig


@contextmanager
def bare_server(config: BenchmarkConfig, precision: Precision) -> Iterator[str]:
    """Starts the server and yields its address. Leaving the block ends it.

    Raises:
        RuntimeError: the server ended at once.
    """
    arguments = [str(config.bundle.folder), precision, str(config.threads)]
    command = [sys.executable, "-m", "zfserve_bench.service.bare_server", *arguments]
    environment = dict(os.environ)
    disable_event_engine_listener(environment)  # as in the service, with which it is compared
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None, "opened above"
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError(f"the bare server ended with status {process.wait()}")
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()  # it holds nothing that needs a clean end


async def serve(engine: OnnxEngine) -> None:
    """Serves on a free port and prints the port. Runs until the process is killed."""
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)

    def run(request: bytes) -> bytes:
        raw = pb.ClassifyRequest.FromString(request).image.raw
        pixels = np.frombuffer(raw.data, np.uint8).reshape(1, raw.height, raw.width, 3)
        probabilities = engine.run(pixels).probabilities[0]
        return pb.ClassifyResponse(classes=[pb.ClassScore(probability=float(probabilities.max()))]).SerializeToString()

    async def classify(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return await loop.run_in_executor(thread, run, request)

    service, _, method = CLASSIFY.strip("/").partition("/")
    handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(classify)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    _precision: Any = sys.argv[2]
    uvloop.run(
        serve(OnnxEngine(load_bundle(Path(sys.argv[1])), _precision, threads=int(sys.argv[3]), max_batch_size=1))
    )
