"""Structured logs: every record's `extra` fields beside its message, as JSON or for the eye.

A line logged while a call is served, by whatever module or library and in whatever thread that works in the call's
context, also carries `request_id`, and `trace_id` where the call is traced.

Modules log to `logging.getLogger(__name__)`; only command modules call `configure_logging`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from zfserve_runtime.grpc.request_id import current_request_id
from zfserve_runtime.telemetry.tracing import current_trace_id

LogFormat = Literal["json", "console"]

# What every record has of its own; the rest came with `extra`.
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(log_format: LogFormat, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (stderr where None), in place of whatever was set up before."""
    output = logging.StreamHandler(stream or sys.stderr)
    output.setFormatter(JsonLines() if log_format == "json" else ConsoleLines())
    logging.basicConfig(level=level, handlers=[output], force=True)


class JsonLines(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message, the fields, and any traceback."""

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
    """`12:30:01 INFO  message  key=value ...`, local time, tracebacks below."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields = "".join(f"  {key}={value}" for key, value in _fields(record).items())
        return super().formatMessage(record) + fields


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Of the call, then those given as `extra`. A record is formatted where it is logged, in the call's context."""
    call = {"request_id": current_request_id(), "trace_id": current_trace_id()}
    extra = {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS}
    return {key: value for key, value in call.items() if value} | extra
