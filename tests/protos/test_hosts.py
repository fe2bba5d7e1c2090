"""A host counts as this machine only where its name leaves no doubt."""

import pytest
from zfserve_protos.hosts import is_loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.1.2", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_only_loopback_addresses_and_localhost_are_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
