"""Text traces: commands with the output that they must print.

    # Comments and blank lines are kept.
    command argument key=value flag
    ----
    what it prints

The format is that of cockroachdb/datadriven; a command without output ends after `----`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SEPARATOR = "----"


class TraceError(AssertionError):
    """The trace is not well formed, or a command does not know an argument."""


@dataclass
class Command:
    """One command line; what was not read by the end is an error, so a typo can't hide."""

    line: int
    text: str
    words: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in self.text.split():
            key, equals, value = part.partition("=")
            if equals:
                self.values[key] = value
            else:
                self.words.append(part)
        self.name = self.words.pop(0)

    def word(self) -> str:
        """The next word; raises `TraceError` if there is none."""
        if not self.words:
            raise TraceError(f"line {self.line}: {self.text!r} lacks an argument")
        return self.words.pop(0)

    def flag(self, name: str) -> bool:
        """Whether a word is among the arguments."""
        if name not in self.words:
            return False
        self.words.remove(name)
        return True

    def text_value(self, key: str, default: str = "") -> str:
        return self.values.pop(key, default)

    def number(self, key: str, default: int) -> int:
        return int(self.values.pop(key, default))

    def finish(self) -> None:
        """Raises `TraceError` for arguments that nobody read."""
        if self.words or self.values:
            left = [*self.words, *self.values]
            raise TraceError(f"line {self.line}: {self.text!r} has unknown arguments {left}")


def run_trace(text: str, interpret: Callable[[Command], list[str]]) -> str:
    """Runs every command and returns the trace with the output that was really printed."""
    result: list[str] = []
    lines = text.splitlines()
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        result.append(line)
        if not line.strip() or line.startswith("#"):
            continue
        if position >= len(lines) or lines[position] != SEPARATOR:
            raise TraceError(f"line {position}: {line!r} is not followed by {SEPARATOR}")
        command = Command(position, line)
        printed = interpret(command)
        command.finish()
        result += [SEPARATOR, *printed]
        position += 1
        while position < len(lines) and lines[position].strip():
            position += 1
    return "\n".join(result) + "\n"


def check_trace(path: Path, interpret: Callable[[Command], list[str]], *, rewrite: bool) -> None:
    """Compares a trace file with what happens, or writes it anew."""
    expected = path.read_text(encoding="utf-8")
    printed = run_trace(expected, interpret)
    if rewrite:
        path.write_text(printed, encoding="utf-8")
        return
    assert printed.splitlines() == expected.splitlines()
