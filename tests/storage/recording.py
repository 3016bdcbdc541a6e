"""Every file operation of a real process, recorded by `strace` and replayed up to any of them.

The replay goes into `MemoryFiles`, whose crash model then says what a power loss may leave. So
SQLite's own journal is tested under the same model as our files (ALICE, OSDI'14).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gaia_grpc.storage.memory_files import Draw, MemoryFiles

STRACE = shutil.which("strace")
_CALLS = "openat,pwrite64,write,ftruncate,fsync,fdatasync,rename,unlink"
_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (\d+)")
_DESCRIPTOR = re.compile(r"^(\d+)<([^>]*)>")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_OUTPUT = 1


def strace_works() -> bool:
    """False where it is missing or may not trace."""
    if STRACE is None:
        return False
    tried = subprocess.run(
        [STRACE, "-qq", "-o", os.devnull, "true"], capture_output=True, timeout=30, check=False
    )
    return tried.returncode == 0


@dataclass(frozen=True, slots=True)
class Operation:
    """One system call that changed something below the directory, or one line of output."""

    call: str
    path: Path
    data: bytes = b""
    offset_bytes: int = 0
    to: Path | None = None


def _plain(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _path(text: str) -> Path:
    return Path(os.fsdecode(_plain(text)))


def record(script: Path, directory: Path, trace: Path) -> list[Operation]:
    """Runs `script DIRECTORY` and returns what it did to the directory and what it printed."""
    assert STRACE is not None
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    subprocess.run(
        [STRACE, "-f", "-y", "-xx", "-s", "1000000", "-qq", "-o", str(trace), "-e",
         f"trace={_CALLS}", sys.executable, str(script), str(directory)],
        capture_output=True, timeout=120, check=True, env=quiet,
    )  # fmt: skip
    found = (_parse(line) for line in trace.read_text().splitlines())
    return [
        each
        for each in found
        if each is not None
        and (each.call == "output" or directory in (each.path, *each.path.parents))
    ]


def _parse(line: str) -> Operation | None:
    match = _LINE.match(line)
    if match is None:
        return None
    call, arguments = match[1], match[2]
    strings = _STRING.findall(arguments)
    if call == "openat":
        if "O_CREAT" not in arguments:
            return None
        return Operation("truncating" if "O_TRUNC" in arguments else "create", _path(strings[0]))
    if call == "rename":
        return Operation(call, _path(strings[0]), to=_path(strings[1]))
    if call == "unlink":
        return Operation(call, _path(strings[0]))
    descriptor = _DESCRIPTOR.match(arguments)
    if descriptor is None:
        return None
    path = _path(descriptor[2])
    if call == "write":
        return Operation("output", path, _plain(strings[0])) if descriptor[1] == "1" else None
    if call == "pwrite64":
        return Operation(call, path, _plain(strings[0]), int(arguments.rsplit(",", 1)[1]))
    if call == "ftruncate":
        return Operation(call, path, offset_bytes=int(arguments.rsplit(",", 1)[1]))
    return Operation("sync", path)


class Replay:
    """The files of a directory and of the folders in it, as far as the recording was followed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._folders: dict[Path, MemoryFiles] = {directory: MemoryFiles()}
        self.output = b""

    def _files(self, folder: Path) -> MemoryFiles:
        return self._folders.setdefault(folder, MemoryFiles())

    def follow(self, operation: Operation) -> None:
        """Does what the process did."""
        path = operation.path
        if operation.call == "output":
            self.output += operation.data
            return
        if operation.call == "sync" and path in self._folders:
            self._folders[path].sync_names()
            return
        files = self._files(path.parent)
        name = path.name
        if operation.call == "sync" and name not in files.names():
            self._files(path).sync_names()
        elif operation.call in ("create", "truncating"):
            if name not in files.names():
                files.create(name)
            elif operation.call == "truncating":
                files.open(name).truncate(0)
        elif operation.call == "pwrite64":
            files.open(name).write(operation.offset_bytes, operation.data)
        elif operation.call == "ftruncate":
            files.open(name).truncate(operation.offset_bytes)
        elif operation.call == "rename":
            assert operation.to is not None
            files.rename(name, operation.to.name)
        elif operation.call == "unlink":
            files.remove(name)
        else:
            files.open(name).sync()

    def crash(self, draw: Draw | None) -> None:
        """The power goes, for all folders at once."""
        for _, files in sorted(self._folders.items()):
            files.crash(draw)

    def put(self, target: Path) -> None:
        """Writes what is left to real files."""
        shutil.rmtree(target, ignore_errors=True)
        for folder, files in sorted(self._folders.items()):
            to = target / folder.relative_to(self._directory)
            to.mkdir(parents=True, exist_ok=True)
            for name in files.names():
                file = files.open(name)
                (to / name).write_bytes(file.read(0, file.size_bytes))


def replayed(
    operations: list[Operation], directory: Path, until: int, prepare: Callable[[Replay], None]
) -> Replay:
    """The files after the first `until` operations and what `prepare` does to them."""
    replay = Replay(directory)
    for operation in operations[:until]:
        replay.follow(operation)
    prepare(replay)
    return replay
