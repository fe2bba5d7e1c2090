"""Early shedding refuses a call before the server reads its request, if no model would accept it. See `deferred_read`.

A photo may have megabytes, and a full server has no time to receive it only to refuse it. The server does not know yet
what the request asks for. So it refuses a call early only if every model refuses an image of that caller. `admission`
decides about all other calls once their request is read.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from zfserve_protos.methods import CLASSIFY, EXPLAIN, MODEL_INFER
from zfserve_runtime.errors import Overloaded
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_runtime.grpc.deferred_read import CallCheck
from zfserve_runtime.grpc.method_handlers import Context, Metadata

from zfserve_server.admission.caller_identity import CallerIdentity, Priority, identify_caller
from zfserve_server.models.registry import ModelRegistry


def early_checks(models: ModelRegistry) -> dict[str, CallCheck]:
    """Returns a check for each method whose one request brings photos for an engine, by the method's full name.

    A check raises Overloaded if no model would accept the call. It raises InvalidInput if the metadata hold an unknown
    priority or a client id that is too long.
    """

    def check_image(context: Context, metadata: Metadata) -> None:
        _check(models, [identify_caller(context, metadata)], Deadline.of(context))

    def check_infer(context: Context, metadata: Metadata) -> None:
        caller = identify_caller(context, metadata)  # the request may set another priority
        _check(models, [replace(caller, priority=priority) for priority in Priority], Deadline.of(context))

    return {CLASSIFY: check_image, EXPLAIN: check_image, MODEL_INFER: check_infer}


def all_models_busy(models: ModelRegistry) -> bool:
    """Returns True where early shedding may refuse calls.

    An idle model accepts any call. If no model is ready, the service refuses the call itself.
    """
    return len(models) > 0 and all(model.admission.in_flight for model in models)


def _check(models: ModelRegistry, callers: Sequence[CallerIdentity], deadline: Deadline) -> None:
    """Raises the last model's Overloaded where no model would accept an image of any of `callers`."""
    candidates = [(model.admission, caller) for model in models for caller in callers]
    for admission, caller in candidates[:-1]:
        with suppress(Overloaded):
            admission.check(caller, deadline)
            return
    for admission, caller in candidates[-1:]:  # empty if no model is ready
        admission.check(caller, deadline)
