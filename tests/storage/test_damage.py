"""Flipped bytes: a start is refused or gives a truthful log, never a silently different one.

FAST'18 ("Protocol-Aware Recovery") shows what a damaged middle that passes for a torn tail does:
the peer forgets entries that made a majority. Here a copy of the files at the moment of a kill is
damaged byte by byte. With the mark (process kill) nothing acknowledged may be missing; without it
(power loss) only the last commit may be.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gaia_grpc.errors import GaiaError, StartupError, StorageDamagedError, StorageError
from gaia_grpc.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Index,
    NodeId,
    Restored,
    Term,
    WriteBatch,
)
from gaia_grpc.storage.directory import DATABASE_NAME, MARK_NAME, DataDirectory
from gaia_grpc.storage.wal_check import FRAME_HEADER_BYTES, HEADER_BYTES, scan_journal

N1 = NodeId("n1")
JOURNAL = f"{DATABASE_NAME}-wal"
FRAME_BYTES = FRAME_HEADER_BYTES + 4096
FLIP = 0x41


@dataclass(frozen=True, slots=True)
class Image:
    """Files of a data directory, and the truth about every commit in it, oldest first."""

    files: dict[str, bytes]
    commits: tuple[Restored, ...]
    peer_uuid: str

    def put(self, path: Path, changed: dict[str, bytes | None]) -> None:
        """Writes the files with some of them replaced (None: left out)."""
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for name, data in (self.files | changed).items():
            if data is not None:
                (path / name).write_bytes(data)


def write_log(opened: DataDirectory) -> Iterator[Restored]:
    """A dozen commits of all shapes; yields what is durable after each."""
    yield opened.log.load()
    for step in range(1, 13):
        entries = opened.log.load(again=True).entries
        first = len(entries) + 1 if step % 5 else len(entries) - 1
        added = tuple(
            Entry(Term(step), Index(first + offset), EntryKind.COMMAND, bytes([step]) * 90 * step)
            for offset in range(step % 4)
        )
        last = first + len(added) - 1 if added else len(entries)
        state = HardState(Term(step), N1, Index(min(last, 2))) if step % 3 else None
        if added or state:
            opened.log.write([WriteBatch(step, state, added)])
            yield opened.log.load(again=True)


def make_image(path: Path, *, clean: bool) -> Image:
    opened = DataDirectory.open(path, N1)
    commits = tuple(write_log(opened))
    if clean:
        opened.close()
    files = {
        file.name: file.read_bytes()
        for file in path.iterdir()
        if file.name in (DATABASE_NAME, JOURNAL, MARK_NAME)
    }
    if not clean:
        opened.close()
    return Image(files, commits, opened.identity().peer_uuid)


def outcome(path: Path, image: Image) -> Restored | None:
    """What the directory gives: a truthful log, or None for a refusal in one line."""
    try:
        opened = DataDirectory.open(path, N1)
    except (StorageError, StartupError) as error:
        return None if "\n" not in error.message else image.commits[0]
    try:
        assert opened.identity().peer_uuid == image.peer_uuid
        return opened.log.load()
    finally:
        opened.close()


def flips(data: bytes, step: int) -> Iterator[tuple[int, bytes]]:
    """The data with one byte changed, at every `step`-th position and all over the headers."""
    heads = {*range(min(128, len(data)))}
    if (len(data) - HEADER_BYTES) % FRAME_BYTES == 0:
        for start in range(HEADER_BYTES, len(data), FRAME_BYTES):
            heads |= {*range(start, start + FRAME_HEADER_BYTES)}
    for position in sorted(heads | {*range(0, len(data), step)}):
        changed = bytearray(data)
        changed[position] ^= FLIP
        yield position, bytes(changed)


def test_undamaged_images_restore_everything(directory: Path) -> None:
    for clean in (True, False):
        image = make_image(directory / f"{clean}", clean=clean)
        assert (JOURNAL in image.files) is not clean
        image.put(directory / "copy", {})
        assert outcome(directory / "copy", image) == image.commits[-1]


@pytest.mark.parametrize("mark", [True, False])
def test_flips_in_a_database_at_rest(directory: Path, mark: bool) -> None:
    image = make_image(directory / "n1", clean=True)
    refused = kept = 0
    for position, data in flips(image.files[DATABASE_NAME], 59):
        changed: dict[str, bytes | None] = {DATABASE_NAME: data}
        if not mark:
            changed[MARK_NAME] = None
        image.put(directory / "copy", changed)
        got = outcome(directory / "copy", image)
        assert got in (None, image.commits[-1]), f"silently different at byte {position}"
        refused += got is None
        kept += got is not None
    assert refused > 50
    assert kept > 50  # free space, of which a page at rest is mostly made


def test_b21_flips_in_the_journal_after_a_kill(directory: Path) -> None:
    """B21: behind each damaged frame but the last commit's lie acknowledged ones."""
    image = make_image(directory / "n1", clean=False)
    refused = 0
    for position, data in flips(image.files[JOURNAL], 211):
        image.put(directory / "copy", {JOURNAL: data})
        got = outcome(directory / "copy", image)
        assert got in (None, image.commits[-1]), f"silently different at byte {position}"
        refused += got is None
    assert refused > 100


def test_flips_in_the_journal_after_a_power_loss(directory: Path) -> None:
    """Without the mark only the last commit is open to doubt."""
    image = make_image(directory / "n1", clean=False)
    for position, data in flips(image.files[JOURNAL], 211):
        image.put(directory / "copy", {JOURNAL: data, MARK_NAME: None})
        got = outcome(directory / "copy", image)
        assert got in (None, *image.commits[-2:]), f"acknowledged commits lost at byte {position}"


@pytest.mark.parametrize("mark", [True, False])
def test_journals_cut_short(directory: Path, mark: bool) -> None:
    """A torn tail is no damage, but a mark that says otherwise turns it into some.

    A cut can't be told from a tear, so without the mark any earlier commit is truthful.
    """
    image = make_image(directory / "n1", clean=False)
    journal = image.files[JOURNAL]
    seen = set()
    for size in range(0, len(journal) + 1, 997):
        changed: dict[str, bytes | None] = {JOURNAL: journal[:size]}
        if not mark:
            changed[MARK_NAME] = None
        image.put(directory / "copy", changed)
        got = outcome(directory / "copy", image)
        if mark:
            assert got in (None, image.commits[-1])
        elif got is not None:
            assert got in image.commits
            seen.add(got.hard_state.term)
    assert mark or len(seen) > 4


def test_b21_a_torn_last_commit_is_no_damage(directory: Path) -> None:
    """Frames may reach the disk in any order: the commit's last one without its first one."""
    opened = DataDirectory.open(directory / "n1", N1)
    first = Entry(Term(1), Index(1), EntryKind.COMMAND, b"first")
    opened.log.write([WriteBatch(1, None, (first,))])
    journal = directory / "n1" / JOURNAL
    before = journal.stat().st_size
    large = Entry(Term(1), Index(2), EntryKind.COMMAND, bytes(20_000))
    opened.log.write([WriteBatch(2, None, (large,))])
    data = bytearray(journal.read_bytes())
    files = {DATABASE_NAME: (directory / "n1" / DATABASE_NAME).read_bytes()}
    opened.close()
    assert len(data) - before > 3 * FRAME_BYTES
    data[before : before + FRAME_BYTES] = bytes(FRAME_BYTES)
    image = Image(files, (), opened.identity().peer_uuid)
    image.put(directory / "copy", {JOURNAL: bytes(data)})
    got = outcome(directory / "copy", image)
    assert got is not None
    assert got.entries == (first,)


def test_structural_damage_is_found_at_the_start(directory: Path) -> None:
    """Damage outside of rows: the count of free pages in the header."""
    image = make_image(directory / "n1", clean=True)
    data = bytearray(image.files[DATABASE_NAME])
    data[36:40] = (3).to_bytes(4, "big")
    image.put(directory / "copy", {DATABASE_NAME: bytes(data)})
    with pytest.raises(StorageDamagedError, match=r"(?i)freelist"):
        DataDirectory.open(directory / "copy", N1)


def test_a_lost_journal_is_noticed(directory: Path) -> None:
    image = make_image(directory / "n1", clean=False)
    image.put(directory / "copy", {JOURNAL: None})
    with pytest.raises(StorageDamagedError, match=r"--join"):
        DataDirectory.open(directory / "copy", N1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("DELETE FROM entries WHERE log_index=2", "entry 2 is missing"),
        ("DELETE FROM entries WHERE log_index=1", "entry 1 is missing"),
        ("DELETE FROM entries WHERE number=(SELECT max(number) FROM entries)", "was acknowledged"),
        ("UPDATE entries SET data=x'00' WHERE log_index=2", "entry 2 fails its check"),
        ("UPDATE entries SET term=term+1 WHERE log_index=1", "entry 1 fails its check"),
        ("UPDATE entries SET kind=9 WHERE log_index=1", "entry 1 fails its check"),
        ("UPDATE entries SET number=-1 WHERE log_index=1", "entry 1 fails its check"),
        ("UPDATE entries SET data='text' WHERE log_index=1", "entry 1 fails its check"),
        ("UPDATE hard_state SET voted_for='n2'", "hard state row fails its check"),
        ("UPDATE hard_state SET term=-1", "hard state row fails its check"),
        ("DELETE FROM hard_state", "hard state row is missing"),
        ("UPDATE base SET term=1", "base row fails its check"),
        ("DELETE FROM base", "base row is missing"),
        ("UPDATE meta SET value='x' WHERE key='peer_uuid'", "a meta row fails its check"),
        ("DELETE FROM meta WHERE key='boot'", "the meta row boot is missing"),
        ("DROP TABLE entries", "no such table"),
    ],
)
def test_b21_damaged_rows_say_what_and_what_to_do(
    directory: Path, damage: str, message: str
) -> None:
    opened = DataDirectory.open(directory, N1)
    for index in range(1, 4):
        entry = Entry(Term(1), Index(index), EntryKind.COMMAND, b"command")
        opened.log.write([WriteBatch(index, HardState(Term(1), N1), (entry,))])
    entry = Entry(Term(1), Index(4), EntryKind.COMMAND, b"command")
    opened.log.write([WriteBatch(4, None, (entry,))])
    opened.log._database.connection.execute(damage)
    opened.close()
    with pytest.raises(GaiaError, match=message) as caught:
        DataDirectory.open(directory, N1)
    assert "\n" not in caught.value.message
    if damage != "DROP TABLE entries":
        assert isinstance(caught.value, StorageDamagedError)
        assert "move the data directory away" in caught.value.message


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 5000])
def test_foreign_journal_bytes(directory: Path, content: bytes) -> None:
    """Up to one header of rubbish can be a torn first write; more can't."""
    image = make_image(directory / "n1", clean=True)
    image.put(directory / "copy", {JOURNAL: content})
    scan = scan_journal(directory / "copy" / JOURNAL)
    got = outcome(directory / "copy", image)
    assert got == (image.commits[-1] if not content else None)
    assert scan.lost_commits(0) is bool(content)


def test_reading_notices_damage_after_the_start(directory: Path) -> None:
    opened = DataDirectory.open(directory, N1)
    entries = tuple(Entry(Term(1), Index(i), EntryKind.COMMAND, b"x") for i in range(1, 6))
    opened.log.write([WriteBatch(1, None, entries)])
    execute: Callable[[str], object] = opened.log._database.connection.execute
    execute("UPDATE entries SET data=x'00' WHERE log_index=4")
    assert opened.log.read_entries(Index(1), 3) == entries[:3]
    with pytest.raises(StorageDamagedError, match="entry 4 fails its check"):
        opened.log.read_entries(Index(3), 2)
    execute("DELETE FROM entries WHERE log_index=4")
    with pytest.raises(StorageDamagedError, match="entry 4 is missing"):
        opened.log.read_entries(Index(4), 2)
    opened.close()
