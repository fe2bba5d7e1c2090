"""Who the client says it is, and how urgent, to a service that puts it in line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.vision_service import FakeVisionService
from zfserve import Client
from zfserve.channel import LONGEST_CLIENT_ID, sender_metadata
from zfserve_cli.exit_statuses import OK
from zfserve_cli.main import main

Ask = Callable[..., Any]


def said(service: FakeVisionService) -> list[tuple[str | bytes | None, str | bytes | None]]:
    return [(metadata.get("x-priority"), metadata.get("x-client-id")) for metadata in service.metadata]


def test_every_call_says_it(ask: Ask, service: FakeVisionService, address: str) -> None:
    client = {"priority": "bulk", "client_id": "shop"}
    ask(address, "classify", b"1", client=client)
    ask(address, "classify_many", [b"1"], client=client)
    ask(address, "project", b"1", "conv1", strongest=1, client=client)
    ask(address, "classify", b"1")
    assert said(service) == [("bulk", "shop")] * 3 + [(None, None)]


def test_the_command_line_says_it(service: FakeVisionService, address: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"1")
    flags = ["--priority", "bulk", "--client-id", "shop", "--address", address]
    assert main(["classify", str(photo), *flags]) == OK
    assert said(service) == [("bulk", "shop")]


def test_only_what_differs_from_the_defaults_is_said() -> None:
    assert sender_metadata("interactive", None) == ()
    assert sender_metadata("bulk", None) == (("x-priority", "bulk"),)
    assert sender_metadata("interactive", "shop") == (("x-client-id", "shop"),)


@pytest.mark.parametrize("client_id", ["", " shop", "sh\nop", "Läden", "c" * (LONGEST_CLIENT_ID + 1)])
def test_an_id_that_no_header_can_hold(client_id: str) -> None:
    with pytest.raises(ValueError, match="id"):
        sender_metadata("interactive", client_id)


def test_a_priority_that_is_none() -> None:
    with pytest.raises(ValueError, match="interactive or bulk"):
        Client(priority="urgent")  # type: ignore[arg-type]
