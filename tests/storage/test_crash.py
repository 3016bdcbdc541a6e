"""Real kills and real failing system calls: what was acknowledged is there, what failed is not.

The failing calls come from `strace` fault injection into a child process; the child prints a line
only after a write returned, which is what a peer does before it acknowledges.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gaia_grpc.errors import StartupError, StorageError
from gaia_grpc.raft.types import NodeId
from gaia_grpc.storage.directory import DataDirectory

N1 = NodeId("n1")
STRACE = shutil.which("strace")

WRITER = """
import sys
from pathlib import Path
from gaia_grpc.errors import GaiaError, StorageFailedError, StorageFullError
from gaia_grpc.raft.types import Entry, EntryKind, HardState, Index, NodeId, Term, WriteBatch
from gaia_grpc.storage import sqlite_log
from gaia_grpc.storage.directory import DataDirectory

sqlite_log.MAINTAIN_PAGES = 20
try:
    opened = DataDirectory.open(Path(sys.argv[1]), NodeId("n1"))
    print("open", flush=True)
    for index in range(len(opened.log.load().entries) + 1, int(sys.argv[2]) + 1):
        entry = Entry(Term(1), Index(index), EntryKind.COMMAND, b"%d" % index * 50)
        state = HardState(Term(index), NodeId("n1"), Index(index - 1))
        opened.log.write([WriteBatch(index, state, (entry,))])
        print(index, flush=True)
        opened.log.maintain()
    opened.close()
    print("closed", flush=True)
except StorageFullError as error:
    print("full:", error, file=sys.stderr)
    sys.exit(4)
except GaiaError as error:
    print("failed:", error, file=sys.stderr)
    sys.exit(3)
"""


def acknowledged(output: bytes) -> int:
    """The last write that the child reported; a line cut by the kill does not count."""
    numbers = [int(line) for line in output.split(b"\n")[:-1] if line.isdigit()]
    return numbers[-1] if numbers else 0


def check(path: Path, at_least: int, at_most: int) -> None:
    opened = DataDirectory.open(path, N1)
    restored = opened.log.load()
    opened.close()
    count = len(restored.entries)
    assert at_least <= count <= at_most
    assert restored.hard_state.term == count
    assert [int(e.data[: len(str(e.index))]) for e in restored.entries] == [
        e.index for e in restored.entries
    ]


def test_kill_9_amid_writes_keeps_every_acknowledged_one(tmp_path: Path) -> None:
    """B1, B2: hard state and entries alike, over several lives of one directory."""
    seen = 0
    for life in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), "1000000"], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        output = b""
        while acknowledged(output) < seen + 40 + 7 * life:
            output += os.read(writer.stdout.fileno(), 4096)
        writer.send_signal(signal.SIGKILL)
        output += writer.stdout.read()
        writer.stdout.close()
        writer.wait(timeout=10)
        seen = acknowledged(output)
        check(tmp_path, seen, seen + 1)


def run_with_fault(path: Path, fault: str) -> subprocess.CompletedProcess[bytes]:
    assert STRACE is not None
    call = fault.split(":")[0]
    # Coverage writes files of its own, which must not meet the fault.
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    return subprocess.run(
        [STRACE, "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={fault}",
         sys.executable, "-c", WRITER, str(path), "40"],
        capture_output=True, timeout=60, check=False, env=quiet,
    )  # fmt: skip


def strace_works() -> bool:
    if STRACE is None:
        return False
    tried = subprocess.run(
        [STRACE, "-qq", "-o", os.devnull, "true"], capture_output=True, timeout=30, check=False
    )
    return tried.returncode == 0


needs_strace = pytest.mark.skipif(
    not strace_works(), reason="strace is not here (or may not trace), so no system call can fail"
)


@needs_strace
@pytest.mark.parametrize(
    ("call", "number"),
    [("fsync", 1), ("fsync", 2), ("fsync", 3), ("fsync", 4)]
    + [
        ("fdatasync", number)
        for number in (1, 3, 4, 5, 7, 8, 9, 11, 13, 14, 16, 18, 20, 21, 26, 33, 48)
    ],
)
def test_b23_a_failed_fsync_ends_the_process_without_an_acknowledgement(
    tmp_path: Path, call: str, number: int
) -> None:
    """B23: commits, checkpoints and directories; a second fsync that succeeds proves nothing."""
    path = tmp_path / "n1"
    child = run_with_fault(path, f"{call}:error=EIO:when={number}")
    assert child.returncode == 3, child.stderr
    assert child.stderr.startswith(b"failed: ")
    assert child.stderr.count(b"\n") == 1
    assert b"closed" not in child.stdout
    check(path, acknowledged(child.stdout), acknowledged(child.stdout) + 1)


@needs_strace
@pytest.mark.parametrize("number", [1, 3, 8, 20, 45, 90])
def test_a_failed_write_is_never_acknowledged(tmp_path: Path, number: int) -> None:
    path = tmp_path / "n1"
    child = run_with_fault(path, f"pwrite64:error=EIO:when={number}")
    assert child.returncode == 3, child.stderr
    check(path, acknowledged(child.stdout), acknowledged(child.stdout) + 1)


@needs_strace
@pytest.mark.parametrize("number", [2, 9, 21, 46, 91])
def test_b24_a_full_disk_loses_nothing_and_needs_no_repair(tmp_path: Path, number: int) -> None:
    """B24: from some system call on every write fails; the next start with space works."""
    path = tmp_path / "n1"
    child = run_with_fault(path, f"pwrite64:error=ENOSPC:when={number}+")
    assert child.returncode in (3, 4), child.stderr
    assert child.stderr.count(b"\n") == 1
    check(path, acknowledged(child.stdout), acknowledged(child.stdout))
    assert run_with_fault(path, "pwrite64:error=EIO:when=60000").returncode == 0
    check(path, 40, 40)


def test_b24_a_small_file_system_fills_up_and_serves_again(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "gaia-test", str(path)],
        capture_output=True, timeout=10, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        child = subprocess.run(
            [sys.executable, "-c", WRITER, str(path / "n1"), "1000000"],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert child.returncode == 4, child.stderr
        seen = acknowledged(child.stdout)
        assert seen > 100
        try:
            check(path / "n1", seen, seen)
        except (StartupError, StorageError) as error:
            assert "no space left" in str(error) or "full" in str(error)  # noqa: PT017
        subprocess.run(["mount", "-o", "remount,size=8m", str(path)], check=True, timeout=10)
        check(path / "n1", seen, seen)
    finally:
        subprocess.run(["umount", str(path)], check=True, timeout=10)
