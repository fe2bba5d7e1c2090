"""Scrapes the metrics of several replicas, and summarises the traffic of each one and of all together."""

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

SCRAPE_THREADS = 16
"""At most this many replicas are scraped at the same time."""


class Unreachable(Exception):
    """The metrics of a replica cannot be read. The message says why in a few words."""


class Scrape(NamedTuple):
    """Holds the samples of one replica at one time.

    Attributes:
        at_s: the time in seconds, on the clock of `Replicas`.
        samples: the samples.
    """

    at_s: float
    samples: Samples


@dataclass(frozen=True)
class Replica:
    """Describes the state of one replica.

    Attributes:
        address: the address of its metrics.
        traffic: its traffic. None if its metrics cannot be read.
        problem: a few words that say why there is no traffic. "" if there is.
    """

    address: str
    traffic: Traffic | None
    problem: str = ""


@dataclass(frozen=True)
class Snapshot:
    """Describes the state of all replicas at one time.

    Attributes:
        replicas: the state of each replica.
        total: the traffic of all reachable replicas together. None if none is reachable.
        newest_per_s: the calls per second since the previous scrape. `total` covers the whole window.
    """

    replicas: tuple[Replica, ...]
    total: Traffic | None
    newest_per_s: float = 0.0

    @property
    def unreachable(self) -> int:
        return sum(replica.traffic is None for replica in self.replicas)


class Replicas:
    """Scrapes replicas and keeps the scrapes of the last seconds.

    Args:
        addresses: the `HOST:PORT` of the metrics of each server or worker. A name of several machines, such as the name
            of a headless Service in Kubernetes, stands for all of them.
        window_s: the time over which rates and percentiles are computed, in seconds.
        clock: returns seconds of a monotonic clock.
    """

    def __init__(self, addresses: Sequence[str], window_s: float, clock: Callable[[], float]) -> None:
        self._addresses = addresses
        self._window_s = window_s
        self._clock = clock
        self._scrapes: dict[str, deque[Scrape]] = {}

    def scrape(self, timeout_s: float) -> Snapshot:
        """Scrapes each replica once more. The first scrape gives no rates, because a rate needs two scrapes.

        Args:
            timeout_s: the timeout for each replica, in seconds.
        """
        addresses = [resolved for address in self._addresses for resolved in _resolve(address)]
        for gone in self._scrapes.keys() - addresses:
            del self._scrapes[gone]
        with ThreadPoolExecutor(SCRAPE_THREADS) as threads:
            found = list(threads.map(lambda address: _outcome(address, timeout_s), addresses))
        now_s = self._clock()
        replicas, counted, shown, seconds, newest_per_s = [], [], [], 0.0, 0.0
        for address, outcome in zip(addresses, found, strict=True):
            if isinstance(outcome, Unreachable):
                self._scrapes.pop(address, None)
                replicas.append(Replica(address, None, str(outcome)))
                continue
            first, before = self._remember(address, Scrape(now_s, outcome))
            change = difference(first.samples, outcome) if first.at_s < now_s else {}
            if before.at_s < now_s:
                newest_per_s += count_calls(difference(before.samples, outcome)) / (now_s - before.at_s)
            replicas.append(Replica(address, summarise(change, outcome, now_s - first.at_s)))
            counted.append(change)
            shown.append(outcome)
            seconds = max(seconds, now_s - first.at_s)
        total = summarise(merged(counted), merged(shown), seconds) if shown else None
        return Snapshot(tuple(replicas), total, newest_per_s)

    def _remember(self, address: str, newest: Scrape) -> tuple[Scrape, Scrape]:
        """Returns the scrape at the start of the window, and the one before `newest`. At first, `newest` is both."""
        scrapes = self._scrapes.setdefault(address, deque())
        before = scrapes[-1] if scrapes else newest
        scrapes.append(newest)
        while len(scrapes) > 2 and scrapes[1].at_s <= newest.at_s - self._window_s:
            scrapes.popleft()
        return scrapes[0], before


def _outcome(address: str, timeout_s: float) -> Samples | Unreachable:
    try:
        return fetch_metrics(address, timeout_s)
    except Unreachable as error:
        return error


def fetch_metrics(address: str, timeout_s: float) -> Samples:
    """Returns the metrics at `address`.

    Args:
        address: the `HOST:PORT` of the metrics.
        timeout_s: the timeout, in seconds.

    Raises:
        Unreachable: the metrics cannot be read.
    """
    try:
        # Metrics are private, so no proxy that the environment names can reach them.
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
        raise Unreachable("the answer holds no metrics") from error


def _reason(reason: object) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    return str(reason) or type(reason).__name__


def _resolve(address: str) -> list[str]:
    """Returns the address of every machine behind a name, or the name itself if it has one machine or is unknown."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return [address]
    # A machine with an IPv4 and an IPv6 address would be counted twice.
    family = min((entry[0] for entry in found), key=lambda kind: kind != socket.AF_INET)
    hosts = sorted({str(entry[4][0]) for entry in found if entry[0] == family})
    if len(hosts) == 1:
        return [address]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]
