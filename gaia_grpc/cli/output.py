"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer.core

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.console import Console

PLAIN_WIDTH = 240
LAST_COLUMN_WIDTH = 16
"""A last column that is folded has at least this width."""
LOG_TIME = "log time"
"""The label of times that the cluster counts itself."""


class ListByDefault(typer.core.TyperGroup):
    """A noun whose bare form lists: `gaia sessions --json` is `gaia sessions list --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `list` in front where no verb was given."""
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def print_json(message: Message) -> None:
    """The message as protobuf JSON: the same form that `gaia call` and grpcurl print."""
    from google.protobuf import json_format

    print(json_format.MessageToJson(message))


def print_plain_json(value: Any) -> None:
    """A value of our own as JSON."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Rows under their headings; `empty` where there are none."""
    found = [[_printable(str(cell)) for cell in row] for row in rows]
    if not found:
        print(empty)
        return
    lines = [list(columns), *found]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    # In a pipe or file a row stays one line: programs and `grep` read it so.
    screen = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    left = screen - sum(widths[:-1]) - 2 * (len(widths) - 1)
    if screen and left < min(widths[-1], LAST_COLUMN_WIDTH):
        _print_records(columns, found, screen)
        return
    for line in lines:
        *cells, last = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        head = "".join(f"{cell}  " for cell in cells)
        folded = textwrap.wrap(last, left) if screen else [last]
        for number, part in enumerate(folded or [""]):
            print(((" " * len(head) if number else head) + part).rstrip())


def _print_records(
    columns: Sequence[str], rows: Sequence[Sequence[str]], screen_width: int
) -> None:
    """A table that is wider than the screen: each row as a paragraph of its fields."""
    width = max(map(len, columns))
    for number, row in enumerate(rows):
        if number:
            print()
        for column, cell in zip(columns, row, strict=True):
            head = f"{column.ljust(width)}  "
            parts = textwrap.wrap(cell, max(screen_width - len(head), 8)) or [""]
            for place, part in enumerate(parts):
                print(((" " * len(head) if place else head) + part).rstrip())


def print_cut_off(response: Any, shown: int, narrower: str) -> None:
    """Says on stderr that a list goes on after the `shown` items, and how to see the others."""
    if response.next_page_token:
        print(f"showing {shown:,}, more exist: --limit N{narrower}", file=sys.stderr)


def _printable(text: str) -> str:
    """Without what could steer a terminal: names and texts come from others."""
    return "".join(each if each.isprintable() else " " for each in text)


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for any table in a file or pipe."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def enum_word(name: Callable[[Any], str], value: int, prefix: str) -> str:
    """`HEALTH_DEGRADED` as `degraded`."""
    return name(value).removeprefix(f"{prefix}_").lower()


def time_text(moment: Timestamp) -> str:
    """A time of the cluster in UTC, to the second; `-` where it is not set."""
    if not moment.seconds:
        return "-"
    return moment.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")


def moment_text(at_ms: int) -> str:
    """Milliseconds since 1970 in UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_ms / 1_000))


def bytes_text(value: bytes, length: int = 60) -> str:
    """Bytes for people: text where they are text, hex otherwise, cut to `length`."""
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.hex()
    if not text.isprintable():
        text = value.hex()
    return text if len(text) <= length else text[: length - 3] + "..."
