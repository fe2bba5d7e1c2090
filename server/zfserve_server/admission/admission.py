"""Admission: the first step of a request. It never waits; what does not fit is refused at once.

Everything that costs memory or time (decoding, queueing, the engine, the worker) lies behind it, so its limit bounds
them all. A request is taken on if

- there is a place: of those that are free a client may hold up to `CLIENT_SHARE` times as many, and bulk as a whole no
  more, so that there is room for whoever comes next (dynamic thresholds of Choudhury and Hahne, 1998); and
- it can be answered within its deadline, at the pace of late, with those before it who come first in the waiting line.
  Where nothing is under way, any deadline is tried: that is how a pace that was wrong is measured anew.

Called by the services for every request, and by `turning_away` while every model is busy.
"""

from types import TracebackType

from zfserve_runtime.errors import Overloaded
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.in_flight import InFlight

from zfserve_server.admission.senders import NOBODY, Priority, Sender
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.batching.fair_queue import BULK_EVERY

CLIENT_SHARE = 8
"""One client alone can fill 8/9 of the places, two 8/17 each, and so on."""

NO_DEADLINE = Deadline()


class Admission:
    """Bounds the images that are accepted and not yet answered.

    Args:
        limit: how many.
        pace: of what works on them.
    """

    def __init__(self, limit: int, pace: ServiceRate) -> None:
        self.limit = limit
        self._pace = pace
        self._accepted = InFlight()
        self._held: dict[Priority, dict[str, int]] = {priority: {} for priority in Priority}  # by client
        self._bulk = 0

    @property
    def accepted(self) -> int:
        """Images accepted and not yet answered."""
        return self._accepted.count

    async def emptied(self) -> None:
        """Wait until nothing that was accepted is unanswered."""
        await self._accepted.ended()

    def admit(self, sender: Sender = NOBODY, deadline: Deadline = NO_DEADLINE, rows: int = 1) -> "_Places":
        """Hold places for `rows` images until the block ends.

        Raises:
            Overloaded: see `check`.
        """
        self.check(sender, deadline, rows)
        return _Places(self, sender, rows)

    def check(self, sender: Sender = NOBODY, deadline: Deadline = NO_DEADLINE, rows: int = 1) -> None:
        """Hold nothing.

        Raises:
            Overloaded: there is no place, or the answer would come too late; says when it may be tried again.
        """
        held = self._held[sender.priority].get(sender.client, 0)
        free = self.limit - self.accepted
        bulk = self._bulk if sender.priority is Priority.BULK else 0
        pace = self._pace
        finish_s = pace.finish_s(self._ahead(sender, held), rows) if self.accepted else pace.overdue_s()
        if rows > free or held >= CLIENT_SHARE * free or bulk >= free:
            raise _overloaded(f"{self.accepted} images are waiting already", finish_s)
        remaining_s = deadline.remaining_s()
        if remaining_s is not None and finish_s > remaining_s and pace.measured:
            raise _overloaded(
                f"an answer would take {finish_s:.2g} s and the deadline is in {remaining_s:.2g} s",
                finish_s - remaining_s,
            )

    def _ahead(self, sender: Sender, held: int) -> int:
        """Images that come before the next one of `sender`, who has `held` under way, while everyone who has some
        goes on to send more."""
        rivals = self._held[sender.priority]
        clients = len(rivals) + (sender.client not in rivals)
        ahead = (held + 1) * clients - 1
        if sender.priority is Priority.INTERACTIVE:
            return ahead + min(self._bulk, (ahead + 1) // (BULK_EVERY - 1))
        turns, under_way = (BULK_EVERY - 1) * (ahead + 1), self.accepted - self._bulk
        # More than a batch is a crowd, and others will follow them.
        return ahead + (turns if under_way > self._pace.rows else min(under_way, turns))

    def _hold(self, sender: Sender, rows: int) -> None:
        """Or give up, where `rows` is negative."""
        self._accepted.add(rows)
        if sender.priority is Priority.BULK:
            self._bulk += rows
        held = self._held[sender.priority]
        held[sender.client] = held.get(sender.client, 0) + rows
        if not held[sender.client]:
            del held[sender.client]


class _Places:
    """What `admit` gives: a context, so that no way out of a request keeps its places."""

    __slots__ = ("_admission", "_rows", "_sender")

    def __init__(self, admission: Admission, sender: Sender, rows: int) -> None:
        self._admission, self._sender, self._rows = admission, sender, rows

    def __enter__(self) -> None:
        self._admission._hold(self._sender, self._rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._admission._hold(self._sender, -self._rows)


def _overloaded(why: str, retry_after_s: float) -> Overloaded:
    after_s = f"{retry_after_s:.2g}"  # few different ones: see `ErrorStatus`
    return Overloaded(f"{why}; try again in {after_s} s", retry_after_s=float(after_s))
