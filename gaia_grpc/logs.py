"""Structured logs on stderr: one line an event, as text or as JSON, never a control character.

What others wrote (names, error texts of peers) stands in log lines, so everything that is not
printable is escaped: no line can be forged, no terminal steered. Events of the standard library's
loggers (asyncio, grpc) take the same way.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from typing import TextIO

import structlog

_LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_PLAIN_BREAKERS = frozenset(' "=')
_FIRST = ("timestamp", "level", "event")

EventDict = MutableMapping[str, object]


def configure_logs(level: str, log_format: str, stream: TextIO | None = None) -> None:
    """Sets up structlog and the standard library for this process."""
    target = stream if stream is not None else sys.stderr
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render_json if log_format == "json" else render_text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_LoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forwarder()]
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    # gRPC's server forgets the coroutine of a call that ended before its first step.
    warnings.filterwarnings(
        "ignore", message="coroutine '_handle_rpc' was never awaited", category=RuntimeWarning
    )


def render_text(logger: object, method: str, event: EventDict) -> str:
    """`TIME LEVEL EVENT key=value ...`; values that could be misread are quoted."""
    del logger, method
    time = event.pop("timestamp", "")
    level = str(event.pop("level", ""))
    words = [str(time), f"{level:<7}", _escaped(str(event.pop("event", "")))]
    words += [f"{key}={_text(value)}" for key, value in event.items()]
    return " ".join(words)


def render_json(logger: object, method: str, event: EventDict) -> str:
    """One JSON object, in ASCII."""
    del logger, method
    ordered = {key: event[key] for key in _FIRST if key in event}
    ordered.update(event)
    # JSON leaves DEL as it is.
    return json.dumps(ordered, default=str).replace("\x7f", "\\u007f")


def _text(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not _PLAIN_BREAKERS.intersection(text):
        return text
    return json.dumps(text).replace("\x7f", "\\u007f")


def _escaped(text: str) -> str:
    return text if text.isprintable() else json.dumps(text).replace("\x7f", "\\u007f")


class _LineLogger:
    """Writes one line a call; a closed stderr must not stop a peer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        try:
            self._stream.write(message + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = error = critical = exception = msg


class _LoggerFactory:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, *names: object) -> _LineLogger:
        return _LineLogger(self._stream)


class _Forwarder(logging.Handler):
    """Hands records of the standard library to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("grpc") and _is_cancellation(record):
            # gRPC's server reports a call as an unhandled exception whose caller gave up before it
            # had begun here, as after a stall of this process.
            return
        log = structlog.get_logger()
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        log.log(record.levelno, record.getMessage(), **fields)


def _is_cancellation(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is not None and issubclass(kind, asyncio.CancelledError)
