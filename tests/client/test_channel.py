"""Tests the addresses and the TLS options of both clients."""

from pathlib import Path

import pytest
from zfserve.channel import TlsOptions, channel_target, may_have_several_servers


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("localhost", "dns:///localhost:8500"),
        ("zfserve.internal:9000", "dns:///zfserve.internal:9000"),
        ("10.0.0.1", "dns:///10.0.0.1:8500"),
        ("[::1]", "dns:///[::1]:8500"),
        ("[::1]:9000", "dns:///[::1]:9000"),
        ("10.0.0.1:1,10.0.0.2", "ipv4:10.0.0.1:1,10.0.0.2:8500"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("[::1]:1,[::2]", "ipv6:[::1]:1,[::2]:8500"),
        ("unix:/run/zfserve.sock", "unix:/run/zfserve.sock"),
        ("dns:///zfserve:1", "dns:///zfserve:1"),
    ],
)
def test_addresses(address: str, target: str) -> None:
    assert channel_target(address) == target


@pytest.mark.parametrize("address", ["a:1,b:2", "10.0.0.1:1,[::1]:2", "10.0.0.1:1,b"])
def test_several_addresses_of_several_kinds_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="all IPv4 or all"):
        channel_target(address)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValueError, match="go together"):
        TlsOptions(certificate=Path("client.pem"))


@pytest.mark.parametrize(
    ("address", "several"),
    [
        ("localhost:1", False),
        ("10.0.0.1", False),
        ("[::1]:9000", False),
        ("unix:/run/zfserve.sock", False),
        ("ipv4:10.0.0.1:1", False),
        ("10.0.0.1:1,10.0.0.2", True),
        ("[::1]:1,[::2]", True),
        ("zfserve.prod.svc:8500", True),
        ("dns:zfserve", True),
        ("dns://10.0.0.53/zfserve:1", True),
    ],
)
def test_a_name_may_have_several_servers_behind_it(address: str, several: bool) -> None:
    assert may_have_several_servers(channel_target(address)) == several
