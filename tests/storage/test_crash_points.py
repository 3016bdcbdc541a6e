"""B20: a crash at every single file operation leaves what was acknowledged and nothing else.

The same life of a log (`scenario.steps`) runs twice: in the twin, where the hook of `MemoryFiles`
cuts it off before each operation, and as a real process whose system calls are recorded and then
replayed up to each of them. What is left after a process kill (all of it), after a power loss (only
what was synced) and after drawn ones in between must be the state of the last acknowledged step or
of the one under way.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gaia_grpc.raft.types import Restored
from gaia_grpc.storage.api import LogStorage, SnapshotStore
from gaia_grpc.storage.directory import DataDirectory
from gaia_grpc.storage.memory import MemoryLog, MemorySnapshotStore
from gaia_grpc.storage.memory_files import Draw
from tests.storage.recording import Operation, Replay, record, replayed, strace_works
from tests.storage.scenario import N1, batch, content, entry, entry_id, meta, receive, steps

SMALL_BYTES = 500
LARGE_BYTES = 70_000


class PowerLossError(Exception):
    """Ends the process at this operation."""


def states(size_bytes: int) -> list[Restored]:
    """What is durable after each step."""
    log = MemoryLog(snapshots=MemorySnapshotStore())
    assert log.snapshots is not None
    return [log.load() for _ in steps(log, log.snapshots, size_bytes)]


def read_all(store: SnapshotStore, restored: Restored) -> bytes | None:
    if restored.snapshot is None:
        return None
    reader = store.open(restored.snapshot)
    try:
        return reader.read(0, reader.info.size_bytes)
    finally:
        reader.close()


def check(got: Restored, store: SnapshotStore, allowed: list[Restored], size_bytes: int) -> None:
    assert got in allowed
    expected = None if got.snapshot is None else content(got.snapshot, size_bytes)
    assert read_all(store, got) == expected
    newest = store.latest()
    assert (newest.meta if newest else None) == got.snapshot


def draws(seed: int) -> Draw:
    return random.Random(seed).randint


FATES: list[Callable[[int], Draw | None]] = [
    lambda cut: None,
    lambda cut: lambda low, high: min(1, high),
    lambda cut: draws(cut),
    lambda cut: draws(cut + 1_000_000),
]


@pytest.mark.parametrize("fate", range(len(FATES)))
def test_b20_a_crash_at_every_file_operation_of_the_twin(fate: int) -> None:
    expected = states(SMALL_BYTES)
    cut = 0
    finished = False
    while not finished:
        log = MemoryLog(snapshots=MemorySnapshotStore())
        store = log.snapshots
        assert store is not None
        store.files.hook = cut_off_before(cut)
        done = 0
        try:
            for done, _ in enumerate(steps(log, store, SMALL_BYTES)):  # noqa: B007 - used below
                pass
            finished = True
        except PowerLossError:
            pass
        store.files.hook = None
        log.crash(FATES[fate](cut))
        check(log.load(), store, expected[done : done + 2], SMALL_BYTES)
        # It goes on from there, also with the transfer that was interrupted.
        goes_on(log, store)
        cut += 1
    assert cut > 35


def cut_off_before(number: int) -> Callable[[str, str], None]:
    left = iter(range(number))

    def hook(operation: str, name: str) -> None:
        if next(left, None) is None:
            raise PowerLossError

    return hook


def goes_on(log: LogStorage, store: SnapshotStore) -> None:
    """A recovered disk takes another entry, a received snapshot and entries behind it."""
    restored = log.load()
    last = restored.base.index + len(restored.entries)
    log.write([batch(entry(last + 1, 9))])
    assert log.load().entries[-1] == entry(last + 1, 9)
    receive(store, meta(11, 3), SMALL_BYTES)
    receive(store, meta(40, 9), SMALL_BYTES)
    log.write([batch(entry(41, 9), snapshot=meta(40, 9))])
    restored = log.load()
    assert (restored.snapshot, restored.base) == (meta(40, 9), entry_id(40, 9))
    assert restored.entries == (entry(41, 9),)
    assert read_all(store, restored) == content(meta(40, 9), SMALL_BYTES)


needs_strace = pytest.mark.skipif(
    not strace_works(), reason="strace is not here (or may not trace): no operations are recorded"
)


@needs_strace
def test_b20_a_crash_at_every_system_call_of_a_process(tmp_path: Path, directory: Path) -> None:
    operations = record(
        Path(__file__).with_name("scenario.py"), tmp_path / "n1", tmp_path / "trace"
    )
    changing = [number for number, each in enumerate(operations) if each.call != "output"]
    assert len(changing) > 150
    expected = states(LARGE_BYTES)
    for cut in changing:
        for draw in FATES[:3] if cut % 3 else FATES:
            die(operations, tmp_path / "n1", cut, draw(cut), directory / "copy", expected)


@needs_strace
def test_b20_a_process_kill_at_every_system_call(tmp_path: Path, directory: Path) -> None:
    """The page cache survives: everything that was written is there."""
    operations = record(
        Path(__file__).with_name("scenario.py"), tmp_path / "n1", tmp_path / "trace"
    )
    expected = states(LARGE_BYTES)
    for cut in range(len(operations) + 1):
        if cut and operations[cut - 1].call in ("output", "sync"):
            continue
        die(operations, tmp_path / "n1", cut, None, directory / "copy", expected, keep=True)


def die(
    operations: list[Operation],
    recorded: Path,
    cut: int,
    draw: Draw | None,
    copy: Path,
    expected: list[Restored],
    *,
    keep: bool = False,
) -> None:
    """Opens what is left after `cut` operations, and checks it."""

    def prepare(replay: Replay) -> None:
        if not keep:
            replay.crash(draw)

    replay = replayed(operations, recorded, cut, prepare)
    replay.put(copy)
    acknowledged = [int(line) for line in replay.output.split(b"\n")[:-1] if line.isdigit()]
    done = acknowledged[-1] if acknowledged else 0
    opened = DataDirectory.open(copy, N1)
    try:
        check(opened.log.load(), opened.snapshots, expected[done : done + 2], LARGE_BYTES)
        if cut % 5 == 0:
            goes_on(opened.log, opened.snapshots)
    finally:
        opened.close()
