"""A file system in memory that forgets what was not synced, tears, fails and fills up.

The model (Rebello et al., ATC'20; Pillai et al., OSDI'14), for which nothing but `draw` decides:

- a write is visible at once and durable after `sync` of that file, each file by itself; of what was
  not synced, a crash keeps any subset of the writes, each of them whole or as a prefix;
- names (created, renamed, removed) become durable with `sync_names`; of the others a crash keeps
  any prefix, so a rename may vanish, and a name may point to a file whose content was lost;
- after a failed sync the content stays visible, but will never be durable: a second sync lies;
- a full disk takes a part of a write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeAlias

Draw: TypeAlias = Callable[[int, int], int]
"""`draw(low, high)`: any number in between, both included; seeded by the simulation."""

Hook: TypeAlias = Callable[[str, str], None]
"""Called with (operation, name) before it happens; raising is how a fault is injected."""


def os_error(code: int) -> OSError:
    """An `OSError` as the system words it."""
    return OSError(code, os.strerror(code))


class _Inode:
    def __init__(self, name: str) -> None:
        self.name = name
        self.content = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []

    def change(self, offset_bytes: int, data: bytes | None) -> None:
        self.pending.append((offset_bytes, data))
        _change(self.content, offset_bytes, data)

    def sync(self) -> None:
        for offset_bytes, data in self.pending:
            _change(self.durable, offset_bytes, data)
        self.pending.clear()

    def crash(self, draw: Draw | None) -> None:
        for offset_bytes, data in self.pending:
            fate = 0 if draw is None else draw(0, 2)
            if fate == 2 and draw is not None and data is not None:
                data = data[: draw(0, len(data))]
            if fate:
                _change(self.durable, offset_bytes, data)
        self.pending.clear()
        self.content = bytearray(self.durable)


def _change(content: bytearray, offset_bytes: int, data: bytes | None) -> None:
    """Writes `data`, or with None cuts (or pads) at the offset."""
    if data is None:
        del content[offset_bytes:]
        content.extend(bytes(offset_bytes - len(content)))
        return
    if offset_bytes > len(content):
        content.extend(bytes(offset_bytes - len(content)))
    content[offset_bytes : offset_bytes + len(data)] = data


class MemoryFile:
    """A `File`. One that was opened before a crash can't be used after it."""

    def __init__(self, files: MemoryFiles, inode: _Inode) -> None:
        self._files = files
        self._inode = inode
        self._life = files.life
        self._open = True

    @property
    def size_bytes(self) -> int:
        """Its size now."""
        self._check()
        return len(self._inode.content)

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """What is visible; after `corrupt`, with the flipped bits."""
        self._check()
        return bytes(self._inode.content[offset_bytes : offset_bytes + size_bytes])

    def write(self, offset_bytes: int, data: bytes) -> None:
        """On a full disk half of it gets there."""
        self._check()
        self._files.step("write", self._inode.name)
        grows = offset_bytes + len(data) > len(self._inode.content)
        if self._files.full and grows:
            self._inode.change(offset_bytes, data[: len(data) // 2])
            raise os_error(errno.ENOSPC)
        self._inode.change(offset_bytes, data)

    def truncate(self, size_bytes: int) -> None:
        """Cuts or pads."""
        self._check()
        self._files.step("truncate", self._inode.name)
        self._inode.change(size_bytes, None)

    def sync(self) -> None:
        """Content and size."""
        self._check()
        try:
            self._files.step("sync", self._inode.name)
        except OSError:
            self._inode.pending.clear()
            raise
        self._inode.sync()

    def close(self) -> None:
        """Idempotent."""
        self._open = False

    def _check(self) -> None:
        if not self._open or self._life != self._files.life:
            raise os_error(errno.EBADF)


class MemoryFiles:
    """`Files`. One object outlives the crashes of its peer, as a disk does."""

    def __init__(self) -> None:
        self.life = 0
        self.full = False
        self.failing = False
        self.hook: Hook | None = None
        self.operations = 0
        self._inodes: list[_Inode] = []
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._pending_names: list[tuple[str, _Inode | None]] = []
        self._groups: list[int] = []

    @property
    def where(self) -> str:
        """How messages call it."""
        return "memory"

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(self._names)

    def create(self, name: str) -> MemoryFile:
        """A new file under a name that may be in use."""
        self.step("create", name)
        if self.full:
            raise os_error(errno.ENOSPC)
        inode = _Inode(name)
        self._inodes.append(inode)
        self._rename([(name, inode)])
        return MemoryFile(self, inode)

    def open(self, name: str, *, writable: bool = False) -> MemoryFile:
        """Raises `FileNotFoundError`."""
        return MemoryFile(self, self._inode(name))

    def rename(self, old: str, new: str) -> None:
        """Both names change together, before and after a crash."""
        inode = self._inode(old)
        self.step("rename", new)
        inode.name = new
        self._rename([(old, None), (new, inode)])

    def remove(self, name: str) -> None:
        """A name that is gone is no error."""
        if name in self._names:
            self.step("remove", name)
            self._rename([(name, None)])

    def sync_names(self) -> None:
        """Makes the names durable, in order."""
        try:
            self.step("sync_names", "")
        except OSError:
            self._pending_names.clear()
            self._groups.clear()
            raise
        self._keep(len(self._groups))

    # --- faults ----------------------------------------------------------------------------------

    def step(self, operation: str, name: str) -> None:
        """Counts, and lets `failing` and the hook have their say before anything changes."""
        self.operations += 1
        if self.failing:
            raise os_error(errno.EIO)
        if self.hook is not None:
            self.hook(operation, name)

    def crash(self, draw: Draw | None = None) -> None:
        """The power goes. Without `draw` all that was not synced is lost."""
        for inode in self._inodes:
            inode.crash(draw)
        self._keep(0 if draw is None else draw(0, len(self._groups)))
        self._pending_names.clear()
        self._groups.clear()
        self._names = dict(self._durable_names)
        self._inodes = [each for each in self._inodes if each in self._names.values()]
        for name, inode in self._names.items():
            inode.name = name
        self.full = self.failing = False
        self.life += 1

    def corrupt(self, name: str, offset_bytes: int, mask: int = 1) -> None:
        """Flips bits of one stored byte."""
        inode = self._inode(name)
        for content in (inode.content, inode.durable):
            if offset_bytes < len(content):
                content[offset_bytes] ^= mask

    # --- inside ----------------------------------------------------------------------------------

    def _inode(self, name: str) -> _Inode:
        try:
            return self._names[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def _rename(self, changes: list[tuple[str, _Inode | None]]) -> None:
        for name, inode in changes:
            _point(self._names, name, inode)
        self._pending_names += changes
        self._groups.append(len(changes))

    def _keep(self, groups: int) -> None:
        """The first `groups` of the pending name changes are durable."""
        for size in self._groups[:groups]:
            for name, inode in self._pending_names[:size]:
                _point(self._durable_names, name, inode)
            del self._pending_names[:size]
        del self._groups[:groups]


def _point(names: dict[str, _Inode], name: str, inode: _Inode | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode
