"""Looks at the metrics of several replicas again and again, and says what each of them does, and all together. Used by
`top`."""

import socket
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import NamedTuple

from zfserve_cli.top.metrics_text import NotMetrics, Samples, difference, merged, parse_metrics
from zfserve_cli.top.traffic import Traffic, count_calls, summarise

AT_ONCE = 16
"""Replicas looked at side by side."""


class Unreachable(Exception):
    """A replica's metrics cannot be read; says why in a few words."""


class Look(NamedTuple):
    """One replica's samples; `at_s` in seconds of the clock that `Replicas` was given."""

    at_s: float
    samples: Samples


@dataclass(frozen=True)
class Replica:
    """One replica at present. Either `traffic` is there, or `problem` says why not."""

    address: str
    traffic: Traffic | None
    problem: str = ""


@dataclass(frozen=True)
class View:
    """All of them at present.

    Attributes:
        total: of those that could be looked at; None where there are none.
        newest_per_s: calls per second since the look before, of which `total` may hold several.
    """

    replicas: tuple[Replica, ...]
    total: Traffic | None
    newest_per_s: float = 0.0

    @property
    def unreachable(self) -> int:
        return sum(replica.traffic is None for replica in self.replicas)


class Replicas:
    """Keeps what was seen in the last seconds.

    Args:
        addresses: `HOST:PORT` of their metrics, of a worker too; a name that stands for several machines, as that of a
            headless Service does, for all of them.
        window_s: over which rates and percentiles are told.
        clock: monotonic seconds.
    """

    def __init__(self, addresses: Sequence[str], window_s: float, clock: Callable[[], float]) -> None:
        self._addresses = addresses
        self._window_s = window_s
        self._clock = clock
        self._seen: dict[str, deque[Look]] = {}

    def look(self, timeout_s: float) -> View:
        """Look at each once more. The first look tells no rates, as it has no other to compare with."""
        addresses = [resolved for address in self._addresses for resolved in _resolve(address)]
        for gone in self._seen.keys() - addresses:
            del self._seen[gone]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            found = list(threads.map(lambda address: _outcome(address, timeout_s), addresses))
        now_s = self._clock()
        replicas, counted, shown, seconds, newest_per_s = [], [], [], 0.0, 0.0
        for address, outcome in zip(addresses, found, strict=True):
            if isinstance(outcome, Unreachable):
                self._seen.pop(address, None)
                replicas.append(Replica(address, None, str(outcome)))
                continue
            first, before = self._remember(address, Look(now_s, outcome))
            change = difference(first.samples, outcome) if first.at_s < now_s else {}
            if before.at_s < now_s:
                newest_per_s += count_calls(difference(before.samples, outcome)) / (now_s - before.at_s)
            replicas.append(Replica(address, summarise(change, outcome, now_s - first.at_s)))
            counted.append(change)
            shown.append(outcome)
            seconds = max(seconds, now_s - first.at_s)
        total = summarise(merged(counted), merged(shown), seconds) if shown else None
        return View(tuple(replicas), total, newest_per_s)

    def _remember(self, address: str, look: Look) -> tuple[Look, Look]:
        """The look at the window's begin, and the one before this; this one itself where it is the first."""
        looks = self._seen.setdefault(address, deque())
        before = looks[-1] if looks else look
        looks.append(look)
        while len(looks) > 2 and looks[1].at_s <= look.at_s - self._window_s:
            looks.popleft()
        return looks[0], before


def _outcome(address: str, timeout_s: float) -> Samples | Unreachable:
    try:
        return fetch(address, timeout_s)
    except Unreachable as error:
        return error


def fetch(address: str, timeout_s: float) -> Samples:
    """Raises Unreachable."""
    try:
        # Metrics are not for the world, so no proxy that the environment names leads to them.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}/metrics", timeout=timeout_s) as answer:
            text: bytes = answer.read()
        return parse_metrics(text.decode())
    except TimeoutError as error:
        raise Unreachable(f"no answer in {timeout_s:g} s") from error
    except urllib.error.HTTPError as error:
        raise Unreachable(f"HTTP status {error.code}") from error
    except urllib.error.URLError as error:
        raise Unreachable(_reason(error.reason)) from error
    except (HTTPException, OSError) as error:
        raise Unreachable(_reason(error)) from error
    except (NotMetrics, UnicodeDecodeError) as error:
        raise Unreachable("what answers there shows no metrics") from error


def _reason(reason: object) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    return str(reason) or type(reason).__name__


def _resolve(address: str) -> list[str]:
    """The address of every machine behind the name; the name itself where it is that of one, or cannot be looked up."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return [address]
    # A machine with addresses of both kinds would be counted twice.
    family = min((entry[0] for entry in found), key=lambda kind: kind != socket.AF_INET)
    hosts = sorted({str(entry[4][0]) for entry in found if entry[0] == family})
    if len(hosts) == 1:
        return [address]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]
