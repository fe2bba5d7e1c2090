"""Callers are identified by their metadata and address; invalid metadata is refused."""

from typing import Any

import pytest
from fakes.call_context import FakeContext
from zfserve_runtime.errors import InvalidInput
from zfserve_server.admission.caller_identity import CallerIdentity, Priority, identify_caller


def identify(*metadata: tuple[str, str], peer: str = "unix:") -> CallerIdentity:
    call: Any = FakeContext(*metadata, peer=peer)
    return identify_caller(call, call.invocation_metadata())


@pytest.mark.parametrize(
    ("metadata", "peer", "caller"),
    [
        ((), "ipv4:10.0.0.1:4711", CallerIdentity("ipv4:10.0.0.1")),
        ((), "ipv6:%5B::1%5D:4711", CallerIdentity("ipv6:%5B::1%5D")),
        ((), "unix:", CallerIdentity("unix:")),
        ((("x-client-id", "shop"),), "ipv4:10.0.0.1:4711", CallerIdentity("shop")),
        ((("x-priority", "bulk"),), "unix:", CallerIdentity("unix:", Priority.BULK)),
        ((("x-priority", "interactive"), ("x-client-id", "shop")), "unix:", CallerIdentity("shop")),
    ],
)
def test_a_caller_is_identified_by_its_client_id_or_its_address(
    metadata: tuple[tuple[str, str], ...], peer: str, caller: CallerIdentity
) -> None:
    assert identify(*metadata, peer=peer) == caller


@pytest.mark.parametrize("metadata", [("x-priority", "urgent"), ("x-priority", ""), ("x-client-id", "c" * 65)])
def test_invalid_metadata_is_refused_and_named(metadata: tuple[str, str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        identify(metadata)
    assert refused.value.field == metadata[0]
