"""Tests the arguments of all commands that call a service, and their errors if no service answers."""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from fakes.vision_service import FakeVisionService, listening
from zfserve_cli.exit_statuses import FAILED, OK, UNREACHABLE, UNUSABLE
from zfserve_cli.main import main

CERTIFICATES = Path(__file__).parent.parent / "runtime" / "access" / "tls"
Run = Callable[..., int]


def test_a_model_is_chosen_by_name_and_version(run: Run, service: FakeVisionService, photos: list[Path]) -> None:
    assert run("classify", photos[0], "--model", "birds:1") == OK
    assert run("project", photos[0], "--model", "birds", "--top", "1") == OK
    assert run("info", "--model", "zfnet:3") == OK
    requests = (service.classify_requests[0], service.project_requests[0])
    asked = [*(request.model for request in requests), *service.described]
    assert [(selector.name, selector.version) for selector in asked] == [("birds", "1"), ("birds", ""), ("zfnet", "3")]


@pytest.mark.parametrize("model", ["", ":3", "zfnet:"])
def test_a_model_without_name_or_version_is_refused(run: Run, photos: list[Path], model: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run("classify", photos[0], "--model", model)
    assert caught.value.code == UNUSABLE


def test_no_server_says_how_to_start_one(photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", *map(str, photos), "--address", "127.0.0.1:1"]) == UNREACHABLE
    error = capsys.readouterr().err
    assert error.startswith("error: 3 photos: no zfserve answers at 127.0.0.1:1; start one with `zfserve serve`")
    assert error.count("\n") == 1


def test_a_deadline_says_how_to_give_more_time(
    run: Run, service: FakeVisionService, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    service.open.clear()
    assert run("classify", photos[0], "--timeout", "0.05") == FAILED
    assert "allow more time with --timeout" in capsys.readouterr().err


TRUST = ("--tls-ca", str(CERTIFICATES / "ca.pem"))


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (("--tls",), "no authority that is trusted here has signed its certificate; name that authority's file with"),
        (
            ("--tls-ca", str(CERTIFICATES / "client.pem")),
            "no authority that is trusted here has signed its certificate",
        ),
        (
            (*TRUST, "--tls-server-name", "elsewhere"),
            "its certificate has another name; give that name with --tls-server-name",
        ),
    ],
)
def test_a_failed_tls_handshake_says_which_option_to_change(
    flags: tuple[str, ...], fault: str, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    key, chain = ((CERTIFICATES / name).read_bytes() for name in ("server.key", "server.pem"))
    with listening(service, credentials=grpc.ssl_server_credentials([(key, chain)])) as port:
        address = f"127.0.0.1:{port}"
        assert main(["info", "--address", address, *TRUST]) == OK
        assert main(["info", "--address", address, *flags]) == UNREACHABLE
    assert f"no zfserve answers at {address} over TLS: {fault}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("running", "fault"), [(True, "it does not speak TLS; leave the --tls options out"), (False, "compare the --tls")]
)
def test_tls_to_a_server_without_tls_says_so(
    running: bool, fault: str, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(service) as port:
        address = f"127.0.0.1:{port if running else 1}"
        assert main(["info", "--address", address, "--tls"]) == UNREACHABLE
    assert f"no zfserve answers at {address} over TLS: {fault}" in capsys.readouterr().err


def test_the_address_may_be_in_the_environment(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZFSERVE_ADDRESS", address)
    assert main(["info"]) == OK


@pytest.mark.parametrize(
    "arguments", [["classify", "none.jpg"], ["info", "--tls-cert", "c.pem"], ["info", "--tls-ca", "none.pem"]]
)
def test_unusable_arguments_print_one_error(run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == UNUSABLE
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_times_are_finite_and_above_0(run: Run, capsys: pytest.CaptureFixture[str], value: str) -> None:
    with pytest.raises(SystemExit):
        run("info", f"--timeout={value}")
    assert "is not a number of seconds above 0" in capsys.readouterr().err
