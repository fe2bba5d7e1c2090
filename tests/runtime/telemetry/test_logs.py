import io
import json
import logging
import threading
from collections.abc import Iterator
from contextvars import copy_context

import pytest
from zfserve_runtime.grpc.request_id import set_request_id
from zfserve_runtime.telemetry.logs import LogFormat, configure_logging


@pytest.fixture
def _restored_root_logger() -> Iterator[None]:
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


@pytest.mark.usefixtures("_restored_root_logger")
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


@pytest.mark.usefixtures("_restored_root_logger")
def test_console_shows_fields_beside_the_message() -> None:
    lines = logged("console").splitlines()
    assert lines[0].endswith("INFO    served 3  request_id=abc  duration_ms=1.5")
    assert lines[1].endswith("ERROR   failed")
    assert lines[2].startswith("Traceback")


@pytest.mark.usefixtures("_restored_root_logger")
def test_every_line_of_a_call_has_its_id_from_any_logger_and_any_thread_of_the_call() -> None:
    stream = io.StringIO()
    configure_logging("json", stream=stream)

    def serve() -> None:
        set_request_id("r1")
        logging.getLogger("somebody.elses").warning("odd")
        logging.getLogger("ours").warning("its own id", extra={"request_id": "r2"})
        thread = threading.Thread(target=copy_context().run, args=(logging.getLogger("deep").warning, "from a thread"))
        thread.start()
        thread.join()

    copy_context().run(serve)
    logging.getLogger("ours").warning("outside a call")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("request_id") for line in lines] == ["r1", "r2", "r1", None]
    assert all("trace_id" not in line for line in lines)
