"""Admission control accepts or refuses a request before any image of it is decoded. It never waits.

Decoding, the queue, the engine and the worker come after it, so its limit bounds their memory and time. It accepts a
request if both are true:

- There is a place. A client may hold up to `CLIENT_SHARE` times as many places as are free, and all bulk requests
  together as many as are free. So there is always room for a new client (dynamic thresholds, Choudhury and Hahne 1998).
- At the measured service rate, the answer comes before the deadline. The requests that precede it in the fair queue
  count. If nothing is in flight, admission accepts any deadline, so that a wrong rate is measured again.

The services call it for each request, and `early_shedding` while every model is busy.
"""

from types import TracebackType

from zfserve_runtime.errors import Overloaded
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.in_flight import InFlight

from zfserve_server.admission.caller_identity import ANONYMOUS, CallerIdentity, Priority
from zfserve_server.admission.service_rate import ServiceRate
from zfserve_server.batching.fair_scheduler import BULK_EVERY

CLIENT_SHARE = 8
"""One client alone can fill 8/9 of the places, two clients 8/17 each, and so on."""

NO_DEADLINE = Deadline()


class Admission:
    """Bounds the images in flight: those that are accepted and not yet answered.

    Args:
        limit: the largest number of images in flight.
        service_rate: the measured speed of the engines, or of the worker, behind this admission.
        things: what has the places, for the sentence of a refusal.
    """

    def __init__(self, limit: int, service_rate: ServiceRate, things: str = "images") -> None:
        self.limit = limit
        self._things = things
        self._service_rate = service_rate
        self._in_flight = InFlight()
        self._held: dict[Priority, dict[str, int]] = {priority: {} for priority in Priority}  # images by client
        self._bulk = 0  # images

    @property
    def in_flight(self) -> int:
        """Images that are accepted and not yet answered."""
        return self._in_flight.count

    async def emptied(self) -> None:
        """Waits until no image is in flight."""
        await self._in_flight.wait_none()

    def admit(
        self, caller: CallerIdentity = ANONYMOUS, deadline: Deadline = NO_DEADLINE, images: int = 1
    ) -> "_HeldPlaces":
        """Returns a context that holds a place for each image until its block ends.

        Raises:
            Overloaded: see `check`.
        """
        self.check(caller, deadline, images)
        return _HeldPlaces(self, caller, images)

    def check(self, caller: CallerIdentity = ANONYMOUS, deadline: Deadline = NO_DEADLINE, images: int = 1) -> None:
        """Does what `admit` does, but takes no place and changes nothing.

        Raises:
            Overloaded: there is no place, or the answer would come too late. The error says when to try again.
        """
        held = self._held[caller.priority].get(caller.client, 0)
        free = self.limit - self.in_flight
        bulk = self._bulk if caller.priority is Priority.BULK else 0
        rate = self._service_rate
        finish_s = rate.finish_s(self._images_ahead(caller, held), images) if self.in_flight else rate.blocked_s()
        if images > free or held >= CLIENT_SHARE * free or bulk >= free:
            raise _overloaded(f"{self.in_flight} {self._things} are waiting already", finish_s)
        remaining_s = deadline.remaining_s()
        if remaining_s is not None and finish_s > remaining_s and rate.measured:
            raise _overloaded(
                f"an answer would take {finish_s:.2g} s and the deadline is in {remaining_s:.2g} s",
                finish_s - remaining_s,
            )

    def _images_ahead(self, caller: CallerIdentity, held: int) -> int:
        """Returns how many images precede the next image of `caller`, which has `held` images in flight.

        It assumes that every client with images in flight goes on to send more.
        """
        clients_held = self._held[caller.priority]
        clients = len(clients_held) + (caller.client not in clients_held)
        ahead = (held + 1) * clients - 1
        if caller.priority is Priority.INTERACTIVE:
            return ahead + min(self._bulk, (ahead + 1) // (BULK_EVERY - 1))
        turns, interactive = (BULK_EVERY - 1) * (ahead + 1), self.in_flight - self._bulk
        # If more interactive images than one batch are in flight, more will follow.
        return ahead + (turns if interactive > self._service_rate.rows else min(interactive, turns))

    def _hold(self, caller: CallerIdentity, images: int) -> None:
        """Takes places. A negative `images` gives them back."""
        self._in_flight.add(images)
        if caller.priority is Priority.BULK:
            self._bulk += images
        held = self._held[caller.priority]
        held[caller.client] = held.get(caller.client, 0) + images
        if not held[caller.client]:
            del held[caller.client]


class _HeldPlaces:
    """Holds places while its block runs, so that a request gives them back however it ends."""

    __slots__ = ("_admission", "_caller", "_images")

    def __init__(self, admission: Admission, caller: CallerIdentity, images: int) -> None:
        self._admission, self._caller, self._images = admission, caller, images

    def __enter__(self) -> None:
        self._admission._hold(self._caller, self._images)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._admission._hold(self._caller, -self._images)


def _overloaded(reason: str, retry_after_s: float) -> Overloaded:
    after_s = f"{retry_after_s:.2g}"  # two digits keep the number of different texts small; see `ErrorStatus`
    return Overloaded(f"{reason}; try again in {after_s} s", retry_after_s=float(after_s))
