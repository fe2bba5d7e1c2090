"""Calls that no model would take on, whatever they ask for, are refused before their request is read.

A photo may have megabytes, and a server that is full has no time to take it in only to refuse it. What the request says
is unknown here, so a call is turned away where every model refuses its sender an image; `admission` decides about the
others once they are read. Built by `app`.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from zfserve_protos.methods import CLASSIFY, MODEL_INFER
from zfserve_runtime.errors import Overloaded
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.method_handlers import Ask, Context, Metadata

from zfserve_server.admission.senders import Priority, Sender, Senders
from zfserve_server.models.registry import ModelRegistry


def turning_away(models: ModelRegistry, senders: Senders) -> dict[str, Ask]:
    """By the full names of the methods that send photos to an engine. They raise Overloaded; InvalidInput where the
    metadata name a sender that cannot be."""

    def classify(context: Context, metadata: Metadata) -> None:
        _turn_away(models, [senders.identify(context, metadata)], Deadline.of(context))

    def infer(context: Context, metadata: Metadata) -> None:  # its request may name another priority
        sender = senders.identify(context, metadata)
        _turn_away(models, [replace(sender, priority=priority) for priority in Priority], Deadline.of(context))

    return {CLASSIFY: classify, MODEL_INFER: infer}


def all_are_busy(models: ModelRegistry) -> bool:
    """Else there is nobody to turn away: an idle model takes anyone on, and where none is ready the service says so."""
    return len(models) > 0 and all(model.admission.accepted for model in models)


def _turn_away(models: ModelRegistry, senders: Sequence[Sender], deadline: Deadline) -> None:
    """Raises Overloaded where none of `models` would take on an image of any of `senders`: the last one's refusal."""
    asked = [(model.admission, sender) for model in models for sender in senders]
    for admission, sender in asked[:-1]:
        with suppress(Overloaded):
            admission.check(sender, deadline)
            return
    for admission, sender in asked[-1:]:  # or none at all
        admission.check(sender, deadline)
