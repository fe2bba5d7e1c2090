"""By which threads gRPC reads what clients send, in a process of its own, as that is settled when gRPC is imported."""

import os
import subprocess
import sys

import pytest

CALLS = 200

SERVED = f"""
import asyncio, sys
from pathlib import Path
import zfserve_runtime
import grpc

def pool_runs():
    tasks = [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text() == "event_engine\\n"]
    return sum(int((task / "schedstat").read_text().split()[2]) for task in tasks)

async def echo(request, context):
    return request

async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a", {{"b": handler}})])
    port = server.add_insecure_port("localhost:0")
    await server.start()
    calls = f"import grpc; call = grpc.insecure_channel('localhost:{{port}}').unary_unary('/a/b')"
    calls += "\\nfor _ in range({CALLS}): call(b'x')"
    before = pool_runs()
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", calls)
    assert await client.wait() == 0
    print(pool_runs() - before)
    await server.stop(None)

asyncio.run(main())
"""


@pytest.mark.parametrize(("experiments", "is_pooled"), [(None, False), ("", True)])
def test_calls_are_read_without_the_pool_unless_the_operator_says_otherwise(
    experiments: str | None, is_pooled: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    if experiments is not None:
        environment["GRPC_EXPERIMENTS"] = experiments
    ended = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, env=environment, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), "gRPC may not know the experiment any more"
    assert (int(ended.stdout) >= CALLS) is is_pooled
