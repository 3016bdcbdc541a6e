"""Text traces of the core: each file is named after the rule that it pins.

`pytest tests/raft --rewrite-traces` writes them anew; review the change like code.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.datadriven import Command, TraceError, run_trace
from tests.support.datadriven import check_trace as check
from tests.support.trace import TraceCluster

TRACES = sorted(Path(__file__).with_name("traces").glob("*.txt"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path: Path, request: pytest.FixtureRequest) -> None:
    rewrite = bool(request.config.getoption("--rewrite-traces", default=False))
    check(path, TraceCluster().interpret, rewrite=rewrite)


def test_there_are_traces() -> None:
    assert len(TRACES) >= 12


def echo(command: Command) -> list[str]:
    return [command.word()]


def test_the_runner_prints_what_happened_and_keeps_comments() -> None:
    text = "# why\n\nsay hello\n----\nanything\nelse\n\nsay again\n----\n"
    assert run_trace(text, echo) == "# why\n\nsay hello\n----\nhello\n\nsay again\n----\nagain\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("say a b\n----\n", r"unknown arguments \['b'\]"),
        ("say a to=b\n----\n", r"unknown arguments \['to'\]"),
        ("say\n----\n", "lacks an argument"),
        ("say a\n", "is not followed by ----"),
    ],
)
def test_a_trace_with_a_typo_fails(text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        run_trace(text, echo)


def test_an_unknown_command_fails() -> None:
    with pytest.raises(TraceError, match="unknown command 'stabilise'"):
        run_trace("stabilise\n----\n", TraceCluster().interpret)


def test_a_changed_trace_fails_and_can_be_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("say a\n----\nb\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        check(path, echo, rewrite=False)
    check(path, echo, rewrite=True)
    check(path, echo, rewrite=False)
