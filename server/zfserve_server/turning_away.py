"""Calls that no model would take on, whatever they ask for, are refused before their request is read.

A photo may have megabytes, and a server that is full has no time to take it in only to refuse it. What the request says
is unknown here, so a call is turned away where every model refuses its sender an image; `admission` decides about the
others once they are read. Built by `app`.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc
from zfserve_runtime.deadline import Deadline
from zfserve_runtime.errors import Overloaded

from zfserve_server.models import Models
from zfserve_server.senders import Priority, Sender, Senders

Context = grpc.aio.ServicerContext[Any, Any]
TurnAway = Callable[[Context], None]
"""Raises Overloaded; InvalidInput where the metadata name a sender that cannot be."""


def turning_away(models: Models, senders: Senders) -> dict[str, TurnAway]:
    """By the full names of the methods that send photos to an engine."""

    def classify(context: Context) -> None:
        if _all_are_busy(models):
            _turn_away(models, [senders.identify(context)], Deadline.of(context))

    def infer(context: Context) -> None:
        if _all_are_busy(models):  # the request may name another priority than the metadata
            sender = senders.identify(context)
            _turn_away(models, [replace(sender, priority=priority) for priority in Priority], Deadline.of(context))

    return {"/zfserve.v1.VisionService/Classify": classify, "/inference.GRPCInferenceService/ModelInfer": infer}


def _all_are_busy(models: Models) -> bool:
    """An idle one takes anyone on; where none is ready, the service says so itself."""
    return len(models) > 0 and all(model.admission.accepted for model in models)


def _turn_away(models: Models, senders: Sequence[Sender], deadline: Deadline) -> None:
    """Raises Overloaded where none of `models` would take on an image of any of `senders`: the last one's refusal."""
    *others, (admission, sender) = [(model.admission, sender) for model in models for sender in senders]
    for other, its_sender in others:
        with suppress(Overloaded):
            other.check(its_sender, deadline)
            return
    admission.check(sender, deadline)
