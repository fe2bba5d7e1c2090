"""Probes the companion worker that this server supervises. Called by the supervisor."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from zfserve_protos.channel_options import NO_HEALTH_CHECKING
from zfserve_runtime.grpc.options import worker_channel_options


async def probe_worker(address: str, timeout_s: float) -> bool:
    """Returns True if the worker at `address` answers in any way within `timeout_s` seconds.

    That time includes the time until the worker listens.
    """
    options = [*worker_channel_options(), NO_HEALTH_CHECKING]
    async with grpc.aio.insecure_channel(address, options) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    return True
