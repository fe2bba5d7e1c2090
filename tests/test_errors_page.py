"""docs/errors.md lists every reason, with the status of the service and the exception of the client."""

import re
from pathlib import Path

import grpc
from zfserve.channel import _SERVICE_CONFIG
from zfserve.errors import _BY_CODE, ServerFailed
from zfserve_runtime.grpc.status import error_classes

PAGE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text()
ROW = re.compile(r"^\| `([A-Z_]+)` \| ([A-Z_]+)( \*)? \| `(\w+)` \|[^|]+\|[^|]+\|$", re.MULTILINE)


def exception(status: grpc.StatusCode) -> str:
    return _BY_CODE.get(status, ServerFailed).__name__


def test_every_reason_has_its_status_and_its_exception() -> None:
    told = {(reason, status, client) for reason, status, _, client in ROW.findall(PAGE)}
    assert told == {(error.reason, error.status.name, exception(error.status)) for error in error_classes()}
    assert len(ROW.findall(PAGE)) == len(told)


def test_the_statuses_marked_are_those_that_are_tried_again() -> None:
    policy = _SERVICE_CONFIG["methodConfig"][0]["retryPolicy"]  # type: ignore[index]
    assert policy["maxAttempts"] == 4, "the page says three times more"
    rows = re.findall(r"^\|(?: `\w+` \|)? ([A-Z_]{6,})( \*)?[ ,|]", PAGE, re.MULTILINE)
    assert len(rows) > 20
    for status, marked in rows:
        assert bool(marked) == (status in policy["retryableStatusCodes"]), status
