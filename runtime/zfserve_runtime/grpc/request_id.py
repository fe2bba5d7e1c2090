"""Keeps the id of the call that is being served. Log lines and calls to the worker carry it."""

from contextvars import ContextVar

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def current_request_id() -> str:
    """Returns the id of the call that this task serves, or "" outside a call. Threads in its context get it too."""
    return _request_id.get()


def set_request_id(request_id: str) -> None:
    """Sets the id of the call that this task serves from now on."""
    _request_id.set(request_id)
