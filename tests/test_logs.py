"""Log lines: one a event, nothing in them can steer a terminal or forge another line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog

from gaia_grpc.logs import configure_logs

EVIL = "a\nERROR forged\x1b[2J\x7f\u2028 b"


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    """Gives the process its own logging back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def configure(level: str, log_format: str) -> io.StringIO:
    stream = io.StringIO()
    configure_logs(level, log_format, stream)
    return stream


def test_text_lines() -> None:
    stream = configure("info", "text")
    log = structlog.get_logger("node")
    log.debug("hidden")
    log.info("peer started", node="n1", port=50051, note="two words", empty="")
    (line,) = stream.getvalue().splitlines()
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == 'info    peer started node=n1 port=50051 note="two words" empty=""'


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_that_others_wrote_gets_through(log_format: str) -> None:
    stream = configure("info", log_format)
    structlog.get_logger().warning(EVIL, name=EVIL)
    written = stream.getvalue()
    assert written.endswith("\n")
    line = written[:-1]
    assert line.isprintable()
    assert "forged" in line


def test_json_lines() -> None:
    stream = configure("debug", "json")
    structlog.get_logger().debug("peer started", node="n1", detail={"a": 1}, other=ValueError("x"))
    record = json.loads(stream.getvalue())
    assert list(record)[:3] == ["timestamp", "level", "event"]
    assert record["level"] == "debug"
    assert (record["node"], record["detail"], record["other"]) == ("n1", {"a": 1}, "x")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_trace_is_part_of_its_line(log_format: str) -> None:
    stream = configure("info", log_format)
    try:
        raise KeyError("lost")
    except KeyError as error:
        structlog.get_logger().error("failed", exc_info=error)
    (line,) = stream.getvalue().splitlines()
    assert "Traceback" in line
    assert "KeyError" in line


def test_the_standard_library_takes_the_same_way() -> None:
    stream = configure("info", "json")
    logging.getLogger("asyncio").warning("slow %s", "callback")
    logging.getLogger("asyncio").info("hidden")
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("grpc").exception("broke")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["logger"], first["level"]) == (
        "slow callback",
        "asyncio",
        "warning",
    )
    assert (second["event"], second["logger"]) == ("broke", "grpc")
    assert "KeyError" in second["exception"]


def test_a_call_whose_caller_gave_up_is_no_error() -> None:
    stream = configure("info", "text")
    for logger in ("grpc._cython.cygrpc", "asyncio"):
        try:
            raise asyncio.CancelledError
        except asyncio.CancelledError:
            logging.getLogger(logger).exception("Exception not handled by _handle_exceptions")
    logging.getLogger("grpc._cython.cygrpc").error("without an exception")
    first, second = stream.getvalue().splitlines()
    assert "logger=asyncio" in first
    assert "without an exception" in second


def test_what_grpc_forgets_of_such_a_call_is_no_warning() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        configure("info", "text")
        warnings.warn("coroutine '_handle_rpc' was never awaited", RuntimeWarning, stacklevel=1)
        warnings.warn("coroutine 'ours' was never awaited", RuntimeWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["coroutine 'ours' was never awaited"]


def test_a_closed_stream_stops_nobody() -> None:
    stream = configure("info", "text")
    stream.close()
    structlog.get_logger().info("into the void")
