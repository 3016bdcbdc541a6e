"""The crash model is as hostile as it says: what the tests over it rely on."""

from __future__ import annotations

import errno
import random

import pytest

from gaia_grpc.storage.memory_files import MemoryFiles, os_error


def content(files: MemoryFiles, name: str) -> bytes:
    file = files.open(name)
    return file.read(0, file.size_bytes)


def test_nothing_is_durable_without_a_sync() -> None:
    files = MemoryFiles()
    file = files.create("a")
    file.write(0, b"data")
    assert content(files, "a") == b"data"
    files.crash()
    assert files.names() == []


def test_a_name_without_its_content_and_content_without_its_name() -> None:
    files = MemoryFiles()
    files.create("a").write(0, b"lost")
    files.sync_names()
    named = files.create("b")
    named.write(0, b"nameless")
    named.sync()
    files.crash()
    assert files.names() == ["a"]
    assert content(files, "a") == b""


def test_a_rename_may_vanish() -> None:
    files = MemoryFiles()
    file = files.create("a")
    file.write(0, b"data")
    file.sync()
    files.sync_names()
    files.rename("a", "b")
    assert files.names() == ["b"]
    files.crash()
    assert files.names() == ["a"]
    files.rename("a", "b")
    files.sync_names()
    files.crash()
    assert files.names() == ["b"]


def test_drawn_crashes_tear_and_reorder_writes() -> None:
    seen = set()
    for seed in range(200):
        files = MemoryFiles()
        file = files.create("a")
        file.sync()
        files.sync_names()
        file.write(0, b"xx")
        file.write(2, b"yy")
        files.crash(random.Random(seed).randint)
        seen.add(content(files, "a"))
    assert {b"", b"xx", b"xxyy", b"x", b"xxy", b"\0\0yy"} <= seen


def test_one_seed_gives_one_crash() -> None:
    def crashed(seed: int) -> list[bytes]:
        files = MemoryFiles()
        for name in ("a", "b", "c"):
            files.create(name).write(0, b"0123456789" * 5)
        files.crash(random.Random(seed).randint)
        return [content(files, name) for name in files.names()]

    assert all(crashed(seed) == crashed(seed) for seed in range(30))


def test_after_a_failed_sync_the_next_one_lies() -> None:
    """ATC'20: the pages are clean afterwards, and lost."""
    files = MemoryFiles()
    file = files.create("a")
    files.sync_names()
    file.write(0, b"data")

    def fail(operation: str, name: str) -> None:
        raise os_error(errno.EIO)

    files.hook = fail
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    files.hook = None
    file.sync()
    assert content(files, "a") == b"data"
    files.crash()
    assert content(files, "a") == b""


def test_a_full_disk_takes_a_part_and_still_overwrites() -> None:
    files = MemoryFiles()
    file = files.create("a")
    file.write(0, b"data")
    files.full = True
    with pytest.raises(OSError, match="No space"):
        file.write(4, b"more")
    with pytest.raises(OSError, match="No space"):
        files.create("b")
    file.write(0, b"DATA")
    assert content(files, "a") == b"DATAmo"


def test_files_of_before_a_crash_are_closed() -> None:
    files = MemoryFiles()
    file = files.create("a")
    files.crash()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write(0, b"x")


def test_an_open_file_outlives_its_name() -> None:
    files = MemoryFiles()
    file = files.create("a")
    file.write(0, b"data")
    files.remove("a")
    files.remove("a")
    assert file.read(0, 9) == b"data"
    with pytest.raises(FileNotFoundError):
        files.open("a")
