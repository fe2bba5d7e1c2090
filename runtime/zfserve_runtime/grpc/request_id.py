"""The id of the call being served, known wherever its work is done: log lines carry it, and calls to the worker."""

from contextvars import ContextVar

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def current_request_id() -> str:
    """The id of the call being served in this task, or in a thread that works in its context; "" outside a call."""
    return _request_id.get()


def set_request_id(request_id: str) -> None:
    """From here on this task serves the call `request_id`."""
    _request_id.set(request_id)
