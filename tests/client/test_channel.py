from pathlib import Path

import pytest
from zfserve_client.channel import TlsOptions, channel_target


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
