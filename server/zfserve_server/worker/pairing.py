"""The pairing says whether a worker serves, and whether it holds all networks that the server serves.

A network is identified by its fingerprint. Kept by `client`.
"""

import asyncio
import enum
import logging
from collections.abc import Callable, Collection

from zfserve_runtime.release import RELEASE
from zfserve_runtime.telemetry.metrics import Metrics

from zfserve_server.worker.call_errors import worker_mismatch, worker_unavailable

logger = logging.getLogger(__name__)


class PairingState(enum.Enum):
    """DOWN: no worker serves. MISMATCH: the worker lacks a network that is served. READY: it holds all of them."""

    DOWN = enum.auto()
    MISMATCH = enum.auto()
    READY = enum.auto()


class Pairing:
    """Tracks the state of the pairing. Use from the event loop's thread only.

    Args:
        metrics: shows the state.
        on_change: called after each change of the state, with True if it is READY.

    Attributes:
        worker_down: set while no worker serves.
        mismatched: set while the state is MISMATCH.
    """

    def __init__(self, metrics: Metrics, on_change: Callable[[bool], None]) -> None:
        self._metrics = metrics
        self._on_change = on_change
        self._served: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        self._worker_release = RELEASE
        self._state = PairingState.DOWN
        self.worker_down = asyncio.Event()
        self.worker_down.set()
        self.mismatched = asyncio.Event()
        for state in PairingState:
            metrics.worker_pairing.labels(state.name.lower()).set(state is self._state)

    @property
    def ready(self) -> bool:
        return self._state is PairingState.READY

    @property
    def worker_up(self) -> bool:
        return not self.worker_down.is_set()

    @property
    def served(self) -> frozenset[str]:
        """The fingerprints of the networks that the server serves."""
        return self._served

    def holds(self, fingerprint: str) -> bool:
        """Returns True if a worker serves and holds that network."""
        return self.worker_up and fingerprint in self._held

    def check(self, fingerprint: str) -> None:
        """Raises WorkerUnavailable or WorkerMismatch if no worker can project that network now."""
        if not self.worker_up:
            raise worker_unavailable()
        if fingerprint not in self._held:
            raise worker_mismatch(self._worker_release)

    def set_worker_up(self, up: bool) -> None:
        (self.worker_down.clear if up else self.worker_down.set)()
        self.update()

    def set_served(self, fingerprints: Collection[str]) -> None:
        """Sets the networks that the server serves. Call `update` once the worker was asked to load them."""
        self._served = frozenset(fingerprints)

    def set_worker(self, fingerprints: Collection[str], release: str) -> None:
        """Sets the networks that the worker holds, and its release, by its last answer. Call `update` afterwards.

        Args:
            release: the release of the worker; "" for a release before 0.2.0.
        """
        self._held = frozenset(fingerprints)
        if release != self._worker_release:
            logger.info("the worker is of another release", extra={"worker_release": release, "release": RELEASE})
        self._worker_release = release

    def drop_held(self, fingerprint: str) -> None:
        """Notes that the worker lacks that network."""
        self._held -= {fingerprint}
        self.update()

    def update(self) -> None:
        """Computes the state, and reports it if it has changed."""
        before, self._state = self._state, self._compute()
        if self._state is before:
            return
        self._metrics.worker_pairing.labels(before.name.lower()).set(0)
        self._metrics.worker_pairing.labels(self._state.name.lower()).set(1)
        logger.info("the worker's pairing changed", extra={"pairing": self._state.name})
        if self._state is PairingState.MISMATCH:
            reason = worker_mismatch(self._worker_release).message
            logger.error(
                "the worker lacks weights", extra={"reason": reason, "lacks": sorted(self._served - self._held)}
            )
            self.mismatched.set()
        else:
            self.mismatched.clear()
        self._on_change(self.ready)

    def _compute(self) -> PairingState:
        if not self.worker_up:
            return PairingState.DOWN
        return PairingState.READY if self._served <= self._held else PairingState.MISMATCH
