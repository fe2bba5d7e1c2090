import io
import json
import logging
from collections.abc import Iterator

import pytest
from zfserve_runtime.logs import LogFormat, configure_logging


@pytest.fixture
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(log_format: LogFormat) -> str:
    stream = io.StringIO()
    configure_logging(log_format, stream=stream)
    log = logging.getLogger("zfserve_test")
    log.info("served %d", 3, extra={"request_id": "abc", "duration_ms": 1.5})
    log.debug("not shown")
    try:
        raise ValueError("broken\nbadly")
    except ValueError:
        log.exception("failed")
    return stream.getvalue()


@pytest.mark.usefixtures("_root_as_it_was")
def test_json_is_one_object_per_line() -> None:
    served, failed = [json.loads(line) for line in logged("json").splitlines()]
    assert served.pop("time").endswith("+00:00")
    assert served == {
        "level": "INFO",
        "logger": "zfserve_test",
        "message": "served 3",
        "request_id": "abc",
        "duration_ms": 1.5,
    }
    assert failed["traceback"].endswith("ValueError: broken\nbadly")


@pytest.mark.usefixtures("_root_as_it_was")
def test_console_shows_fields_beside_the_message() -> None:
    lines = logged("console").splitlines()
    assert lines[0].endswith("INFO    served 3  request_id=abc  duration_ms=1.5")
    assert lines[1].endswith("ERROR   failed")
    assert lines[2].startswith("Traceback")
