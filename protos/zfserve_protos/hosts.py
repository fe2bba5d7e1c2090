"""Decides whether a host is this machine.

Only then does a client send its token without TLS, and a server listen without TLS.
"""

import ipaddress


def is_loopback(host: str) -> bool:
    """Returns True for a loopback address and for `localhost`. Any other name may stand for a public address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
