"""Writes a callers file with known tokens, and runs a server with access control whose methods return the caller."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from zfserve_runtime.access.authorizer import Authorizer, current_caller
from zfserve_runtime.access.callers_file import CallerEntry, CallersFile, new_token, write_callers_file
from zfserve_runtime.access.tls import TlsFiles, server_credentials
from zfserve_runtime.grpc.deferred_read import CallCheck
from zfserve_runtime.grpc.health import SERVER, Health, add_health_and_reflection
from zfserve_runtime.grpc.server import InterceptingServer
from zfserve_runtime.telemetry.metrics import Metrics

TLS = Path(__file__).parent.parent / "runtime" / "access" / "tls"
CLIENT_NAME = "zfserve test client"
"""The common name in the client's certificate."""


def write_callers(file: Path, **allowed: str) -> dict[str, str]:
    """Writes a file with these callers and the permissions of each. Returns their tokens by name."""
    tokens, entries = {}, []
    for name, words in allowed.items():
        tokens[name], digest = new_token()
        entries.append(CallerEntry(name=name, token_sha256=digest, allow=tuple(words.split(","))))
    write_callers_file(file, CallersFile(callers=tuple(entries)))
    return tokens


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


class GuardedServer:
    """Holds a channel to a server whose methods answer with the caller's name.

    Attributes:
        read: each request that the server has read.
    """

    def __init__(self, channel: grpc.aio.Channel, read: list[bytes]) -> None:
        self.channel = channel
        self.read = read

    async def unary(self, *metadata: tuple[str, str], request: str = "") -> str:
        call: Any = self.channel.unary_unary("/test.Scripted/Unary", _encode, StringValue.FromString)
        return (await call(StringValue(value=request), metadata=metadata)).value  # type: ignore[no-any-return]

    async def stream(self, *metadata: tuple[str, str], method: str = "Stream") -> list[str]:
        call: Any = self.channel.unary_stream(f"/test.Scripted/{method}", _encode, StringValue.FromString)
        return [message.value async for message in call(StringValue(value="s"), metadata=metadata)]


@asynccontextmanager
async def guarded_server(
    authorizer: Authorizer | None,
    tls: bool = False,
    check: CallCheck | None = None,
    applies: Callable[[], bool] = lambda: True,
) -> AsyncIterator[GuardedServer]:
    """Starts a server and a channel to it. `check` runs before calls of the unary method are read.

    With `tls`, both sides show certificates.
    """
    server, read = InterceptingServer(Metrics(), authorizer=authorizer), list[bytes]()
    if check is not None:
        server.check_before_read("/test.Scripted/Unary", check, applies)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Scripted", _methods(read))])
    add_health_and_reflection(server, Health(SERVER))
    if tls:
        files = TlsFiles(TLS / "server.pem", TLS / "server.key", TLS / "ca.pem")
        port = server.add_secure_port("localhost:0", server_credentials(files))
        channel = grpc.aio.secure_channel(f"localhost:{port}", client_credentials())
    else:
        port = server.add_insecure_port("localhost:0")
        channel = grpc.aio.insecure_channel(f"localhost:{port}")
    await server.start()
    async with channel:
        yield GuardedServer(channel, read)
    await server.stop(None)


def client_credentials(with_certificate: bool = True) -> grpc.ChannelCredentials:
    key, certificate = (TLS / "client.key").read_bytes(), (TLS / "client.pem").read_bytes()
    own = (key, certificate) if with_certificate else (None, None)
    return grpc.ssl_channel_credentials((TLS / "ca.pem").read_bytes(), *own)


def _encode(message: StringValue) -> bytes:
    return message.SerializeToString()


def _methods(read: list[bytes]) -> dict[str, Any]:
    def decode(data: bytes) -> StringValue:
        read.append(data)
        return StringValue.FromString(data)

    async def unary(request: StringValue, context: Any) -> StringValue:
        return StringValue(value=current_caller().name)

    async def stream(request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value=current_caller().name)
        yield request

    async def write(request: StringValue, context: Any) -> None:
        await context.write(StringValue(value=current_caller().name))

    handlers: dict[str, tuple[Any, Any]] = {
        "Unary": (grpc.unary_unary_rpc_method_handler, unary),
        "Stream": (grpc.unary_stream_rpc_method_handler, stream),
        "Write": (grpc.unary_stream_rpc_method_handler, write),
    }
    return {name: wrap(serve, decode, _encode) for name, (wrap, serve) in handlers.items()}
