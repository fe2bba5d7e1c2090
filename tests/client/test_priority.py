"""Tests the client id and the priority that the clients send with each call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.vision_service import FakeVisionService
from zfserve import Client
from zfserve.channel import caller_metadata
from zfserve_cli.exit_statuses import OK
from zfserve_cli.main import main
from zfserve_protos.limits import MAX_CLIENT_ID_LENGTH

Ask = Callable[..., Any]


def sent_metadata(service: FakeVisionService) -> list[tuple[str | bytes | None, str | bytes | None]]:
    return [(metadata.get("x-priority"), metadata.get("x-client-id")) for metadata in service.metadata]


def test_every_call_sends_them(ask: Ask, service: FakeVisionService, address: str) -> None:
    client = {"priority": "bulk", "client_id": "shop"}
    ask(address, "classify", b"1", client=client)
    ask(address, "classify_many", [b"1"], client=client)
    ask(address, "project", b"1", "conv1", strongest=1, client=client)
    ask(address, "classify", b"1")
    assert sent_metadata(service) == [("bulk", "shop")] * 3 + [(None, None)]


def test_the_command_line_sends_them(service: FakeVisionService, address: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"1")
    flags = ["--priority", "bulk", "--client-id", "shop", "--address", address]
    assert main(["classify", str(photo), *flags]) == OK
    assert sent_metadata(service) == [("bulk", "shop")]


def test_only_values_that_differ_from_the_defaults_are_sent() -> None:
    assert caller_metadata("interactive", None) == ()
    assert caller_metadata("bulk", None) == (("x-priority", "bulk"),)
    assert caller_metadata("interactive", "shop") == (("x-client-id", "shop"),)


@pytest.mark.parametrize("client_id", ["", " shop", "sh\nop", "Läden", "c" * (MAX_CLIENT_ID_LENGTH + 1)])
def test_an_id_that_no_header_can_hold_is_refused(client_id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        caller_metadata("interactive", client_id)


def test_an_unknown_priority_is_refused() -> None:
    with pytest.raises(ValueError, match="interactive or bulk"):
        Client(priority="urgent")  # type: ignore[arg-type]
