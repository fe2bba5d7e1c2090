"""Defines the protocol between a benchmark and its load process: orders, results, and the record of a call.

An order is one line of JSON on the process's standard input, and its result is one line of JSON on standard output.
Requests are large, so they travel in files.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

from zfserve_protos.metadata import Priority

STEADY_DEADLINE_S = 30.0
MAX_IN_FLIGHT = 512


class LoadFailed(RuntimeError):
    """A call of a closed loop failed, or the load process ended. The message says which."""


class Kind(StrEnum):
    """Lists the kinds of calls."""

    RAW = "classify raw"
    JPEG = "classify jpeg"
    PROJECT = "project"
    DESCRIBE = "describe"
    BAD_INPUT = "bad input"
    CANCELLED_CLASSIFY = "cancelled classify"
    CANCELLED_PROJECT = "cancelled project"
    HEALTH_WATCH = "health watch"


class Sender(StrEnum):
    """Lists the ways in which an open loop makes its calls.

    Attributes:
        BARE: on a channel without retries, with the caller's identity and priority in the metadata.
        BALANCED: on a channel with the options of zfserve's client: round robin and retries. No identity is sent.
        CLIENT: by `zfserve.AsyncClient`, which also holds back calls to an overloaded service. JPEG files only.
    """

    BARE = "bare"
    BALANCED = "balanced"
    CLIENT = "client"


OK, REFUSED, LATE = "OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"
THROTTLED = "THROTTLED"
"""The client held the call back. The service never saw it."""

NOT_SENT = "NOT_SENT"
"""Too many calls were in flight, so the loop did not make this one."""

EXPECTED_STATUSES: Mapping[str, set[str]] = {
    Kind.BAD_INPUT: {"INVALID_ARGUMENT"},
    Kind.CANCELLED_CLASSIFY: {"CANCELLED", OK},  # the answer may arrive first
    Kind.CANCELLED_PROJECT: {"CANCELLED"},
}
"""The statuses with which a call of a kind may end. Every other kind must end with OK."""


class Call(NamedTuple):
    """Records one call of an open loop.

    Attributes:
        stream: the name of the stream that made it.
        status: the name of its gRPC status, or THROTTLED, or NOT_SENT.
        began_s: its start by `time.monotonic`, a clock that all processes of a machine share.
        seconds: its duration.
    """

    stream: str
    status: str
    began_s: float
    seconds: float

    @property
    def as_expected(self) -> bool:
        return self.status in EXPECTED_STATUSES.get(self.stream, {OK})


def tally(calls: Sequence[Call]) -> str:
    """Returns a sentence with the number of calls by stream and status."""
    counts = Counter((call.stream, call.status) for call in calls)
    return ", ".join(f"{stream} {status} {count}" for (stream, status), count in sorted(counts.items()))


@dataclass(frozen=True)
class ClosedLoop:
    """Orders a closed loop: each client makes one `Classify` call after the other, until enough are answered.

    Attributes:
        kind: the kind of call, RAW or JPEG.
        clients: the number of concurrent callers. Each has its own connection; with several servers all share one to
            each server.
        warm_up: the number of calls answered before the clock starts.
        calls: the number of calls answered while it runs.
    """

    kind: Kind
    clients: int
    warm_up: int
    calls: int


@dataclass(frozen=True)
class ClosedLoopResult:
    """Holds the result of a closed loop.

    Attributes:
        calls: the number of calls answered while the clock ran.
        seconds: the time from the last answer of the warm-up to the last answer counted.
        cpu_s: the CPU time of the load process in that time.
    """

    calls: int
    seconds: float
    cpu_s: float

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.seconds


@dataclass(frozen=True)
class Stream:
    """Describes the calls of one caller and one kind, at a constant rate.

    Attributes:
        name: its name in the records, and the caller's identity, if one is sent.
        kind: the kind of its calls.
        calls_per_s: their mean rate.
        priority: their priority, if an identity is sent.
    """

    name: str
    kind: Kind
    calls_per_s: float
    priority: Priority = "interactive"


@dataclass(frozen=True)
class OpenLoop:
    """Orders an open loop: make calls at given rates until the order to finish, even if earlier calls still run.

    Attributes:
        random_arrivals: True for a Poisson process; False for equal intervals.
        deadline_s: the timeout of each call.
        max_in_flight: the largest number of calls in flight. The loop does not make further calls; it records them as
            NOT_SENT. None for no limit.
    """

    streams: tuple[Stream, ...]
    sender: Sender
    random_arrivals: bool
    deadline_s: float
    max_in_flight: int | None = None

    @classmethod
    def steady(cls, rates: Mapping[Kind, float]) -> Self:
        """Returns an order for calls of several kinds at equal intervals, on a channel with the options of zfserve's
        client.

        Args:
            rates: calls per second of each kind.
        """
        streams = tuple(Stream(kind, kind, per_s) for kind, per_s in rates.items())
        return cls(streams, Sender.BALANCED, False, STEADY_DEADLINE_S, MAX_IN_FLIGHT)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        streams = (Stream(**stream | {"kind": Kind(stream["kind"])}) for stream in document.pop("streams"))
        return cls(tuple(streams), sender=Sender(document.pop("sender")), **document)


class OpenLoopResult(NamedTuple):
    """Holds the result of an open loop.

    Attributes:
        calls: all calls, in the order in which they ended.
        began_s: the start of the loop by `time.monotonic`.
        seconds: the time in which calls began.
        cpu_s: the CPU time of the load process, until the last call ended.
    """

    calls: list[Call]
    began_s: float
    seconds: float
    cpu_s: float


def write_requests(folder: Path, requests: Mapping[Kind, Sequence[bytes]]) -> None:
    """Writes a file for each kind. Each request follows its length, a little-endian number of 8 bytes."""
    for kind, messages in requests.items():
        file = folder / f"{kind}.requests"
        file.write_bytes(b"".join(len(message).to_bytes(8, "little") + message for message in messages))


def read_requests(folder: Path) -> dict[Kind, list[bytes]]:
    """Returns the requests of all kinds that have a file in `folder`."""
    requests: dict[Kind, list[bytes]] = {}
    for kind in Kind:
        file = folder / f"{kind}.requests"
        if file.exists():
            requests[kind], data = [], file.read_bytes()
            while data:
                length = int.from_bytes(data[:8], "little")
                requests[kind].append(data[8 : 8 + length])
                data = data[8 + length :]
    return requests
