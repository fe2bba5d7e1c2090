"""Formats structured logs: each line has the message and the `extra` fields of its record, as JSON or for people.

A line that is logged while a call is served also has `request_id`, and `trace_id` if the call is traced. This holds for
all modules and libraries, and for all threads that work in the call's context.

Modules log to `logging.getLogger(__name__)`. Only the commands call `configure_logging`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from zfserve_runtime.grpc.request_id import current_request_id
from zfserve_runtime.telemetry.tracing import current_trace_id

LogFormat = Literal["json", "console"]

# Every record has these fields. All others came with `extra`.
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(log_format: LogFormat, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Sends all logs to `stream`, by default stderr. Replaces any earlier configuration."""
    output = logging.StreamHandler(stream or sys.stderr)
    output.setFormatter(JsonLines() if log_format == "json" else ConsoleLines())
    logging.basicConfig(level=level, handlers=[output], force=True)


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: time (ISO 8601, UTC), level, logger, message, fields, and any traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class ConsoleLines(logging.Formatter):
    """Formats a record as `12:30:01 INFO  message  key=value ...`, in local time. A traceback follows below."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields = "".join(f"  {key}={value}" for key, value in _fields(record).items())
        return super().formatMessage(record) + fields


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Returns the fields of the call, then those of `extra`. A record is formatted in the context that logs it."""
    call = {"request_id": current_request_id(), "trace_id": current_trace_id()}
    extra = {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS}
    return {key: value for key, value in call.items() if value} | extra
