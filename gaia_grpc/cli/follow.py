"""Prints what a watch of tasks or sessions tells, line by line, across reconnects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gaia_grpc.cli.options import parse_cluster, run_async
from gaia_grpc.cli.output import enum_word, print_json

if TYPE_CHECKING:
    from gaia_grpc.client import Client, StateWatch

NOTICE_INTERVAL_S = 0.5

Cells = Callable[[Any], Sequence[object]]


def follow(
    cluster: str,
    start: Callable[[Client], StateWatch[Any, Any]],
    noun: str,
    columns: Sequence[tuple[str, int]],
    cells: Cells,
    count: int | None,
    json_output: bool,
) -> None:
    """Prints one line a record until Ctrl-C or `count` lines (with JSON: messages).

    `columns` are the headings after INDEX and CHANGE with their widths; `cells` makes a record's.
    """
    from gaia_grpc.cli.rpc import require_peer
    from gaia_grpc.client import Client

    require_peer(parse_cluster(cluster))

    async def run() -> None:
        async with Client.connect(cluster) as client, start(client) as watch:
            printed = 0
            lost = False
            if not json_output:
                _tell(_line(("INDEX", "CHANGE", *(name for name, _ in columns)), columns))
            while count is None or printed < count:
                message = await watch.next(timeout=NOTICE_INTERVAL_S)
                if watch.interrupted != lost:
                    lost = watch.interrupted
                    _tell(
                        "connection lost; asking every peer in turn ..."
                        if lost
                        else f"connected again, to {watch.address}; nothing was missed"
                    )
                if message is None:
                    continue
                if json_output:
                    print_json(message)
                    sys.stdout.flush()
                    printed += 1
                    continue
                for line in _lines(message, noun, columns, cells):
                    print(line, flush=True)
                    printed += 1
                    if printed == count:
                        return

    run_async(run())


def _lines(
    message: Any, noun: str, columns: Sequence[tuple[str, int]], cells: Cells
) -> Iterable[str]:
    """The lines of one message; notes go beside them."""
    from gaia.task.v1 import task_pb2

    word = enum_word(task_pb2.WatchKind.Name, message.kind, "WATCH_KIND")
    if word == "complete":
        _tell(f"that is every {noun}; waiting for changes ... (Ctrl-C ends)")
    elif word == "resync":
        _tell("what changed meanwhile is no longer kept: everything follows once more")
    records = getattr(message, f"{noun}s")
    if word in ("changed", "removed"):
        records = [getattr(message, noun)]
    for record in records:
        yield _line((message.applied_index, word, *cells(record)), columns)


def _line(values: Sequence[object], columns: Sequence[tuple[str, int]]) -> str:
    widths = (8, 8, *(width for _, width in columns))
    texts = ("".join(c if c.isprintable() else " " for c in str(value)) for value in values)
    return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()


def _tell(text: str) -> None:
    """A note beside the output: on stderr, so that a program reads nothing but records."""
    print(text, file=sys.stderr, flush=True)
