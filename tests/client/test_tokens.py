"""Tests that both clients send a token with every call, over TLS or to this machine, and nowhere else."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.vision_service import Failure, FakeVisionService, listening
from zfserve import Client, PermissionDenied, TlsOptions, Unauthenticated
from zfserve.channel import channel_target, token_metadata
from zfserve_cli.exit_statuses import OK, UNUSABLE
from zfserve_cli.main import main

CERTIFICATES = Path(__file__).parent.parent / "runtime" / "access" / "tls"
Ask = Callable[..., Any]
TOKEN = "zfs_a-secret"
SHOWN = f"Bearer {TOKEN}"


def test_every_call_shows_the_token(ask: Ask, service: FakeVisionService, address: str) -> None:
    with_token = {"token": TOKEN}
    ask(address, "classify", b"1", client=with_token)
    ask(address, "classify_many", [b"1", b"2"], client=with_token)
    ask(address, "project", b"1", "conv1", strongest=1, client=with_token)
    ask(address, "describe", client=with_token)
    assert service.authorizations == [SHOWN] * 5
    ask(address, "describe")
    assert service.authorizations[5:] == [None]


@pytest.mark.parametrize(
    "address",
    [
        "localhost",
        "127.0.0.1:1,127.0.0.2:2",
        "[::1]:9000",
        "unix:/run/zfserve.sock",
        "dns:///localhost:1",
        "ipv4:127.0.0.1:1",
    ],
)
def test_a_token_goes_to_this_machine_without_tls(address: str) -> None:
    assert token_metadata(TOKEN, channel_target(address), None) == (("authorization", SHOWN),)


@pytest.mark.parametrize(
    "address",
    [
        "zfserve.internal",
        "10.0.0.1",
        "127.0.0.1:1,10.0.0.1:1",
        "[2001:db8::1]:1",
        "dns://1.2.3.4/localhost:1",
        "xds:///localhost",
    ],
)
def test_a_token_goes_nowhere_else_without_tls(address: str) -> None:
    with pytest.raises(ValueError, match="over TLS only") as refused:
        Client(address, token=TOKEN)
    assert TOKEN not in str(refused.value)
    assert token_metadata(TOKEN, channel_target(address), TlsOptions()) == (("authorization", SHOWN),)
    assert token_metadata(None, channel_target(address), None) == ()


@pytest.mark.parametrize("token", ["", " ", "two\nlines", "ümlaut", " spaced"])
def test_a_malformed_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="the token is empty, or holds"):
        token_metadata(token, "dns:///localhost:1", None)


@pytest.mark.parametrize(
    ("code", "error", "status"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated, UNUSABLE),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied, UNUSABLE),
    ],
)
def test_a_call_without_permission_has_its_error_and_exit_status(
    ask: Ask,
    service: FakeVisionService,
    address: str,
    code: grpc.StatusCode,
    error: type[Exception],
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service.failures = [Failure(code, "not you.", reason=code.name)] * 2
    with pytest.raises(error, match="not you"):
        ask(address, "describe")
    assert main(["info", "--address", address]) == status
    message = capsys.readouterr().err
    assert "not you." in message
    assert ("--token-file" in message) == (error is Unauthenticated)


def test_the_command_line_reads_the_token_from_a_file_or_the_environment(
    service: FakeVisionService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    pair = ((CERTIFICATES / "server.key").read_bytes(), (CERTIFICATES / "server.pem").read_bytes())
    with listening(service, "localhost:0", grpc.ssl_server_credentials([pair])) as port:
        info = ["info", "--address", f"localhost:{port}", "--tls-ca", str(CERTIFICATES / "ca.pem")]
        assert main([*info, "--token-file", str(file)]) == OK
        monkeypatch.setenv("ZFSERVE_TOKEN", "from-the-environment")
        assert main(info) == OK
        monkeypatch.setenv("ZFSERVE_TOKEN_FILE", str(file))
        assert main(info) == OK
    shown = [each for each, _ in groupby(service.authorizations)]  # a command may make several calls
    assert shown == [SHOWN, "Bearer from-the-environment", SHOWN]
    assert main(["info", "--address", "zfserve.example"]) == UNUSABLE
    assert main(["info", "--token-file", str(tmp_path / "none")]) == UNUSABLE
    output = capsys.readouterr()
    assert "over TLS only" in output.err
    assert TOKEN not in output.err + output.out
