"""Deliberate bugs of the storage, and of the thread that writes."""

from __future__ import annotations

from tests.mutants.catalogue import Mutant

SQLITE_LOG = "gaia_grpc/storage/sqlite_log.py"
DATABASE = "gaia_grpc/storage/database.py"
DIRECTORY = "gaia_grpc/storage/directory.py"
SNAPSHOTS = "gaia_grpc/storage/snapshots.py"
SNAPSHOT_FILE = "gaia_grpc/storage/snapshot_file.py"
WRITER = "gaia_grpc/node/writer.py"
LEASES = "tests/node/test_leases.py::"
FAULTS = "tests/storage/test_snapshot_faults.py::"
DAMAGE = "tests/storage/test_damage.py::"
CRASH = "tests/storage/test_crash.py::"
CONTRACT = "tests/storage/test_storage_contract.py::"
POINTS = "tests/storage/test_crash_points.py::"

MUTANTS = (
    Mutant(
        "B1",
        "the vote is not stored",
        SQLITE_LOG,
        "    crc = hard_state_crc(state.term, state.voted_for, state.commit_index, number)\n"
        "    connection.execute(_HARD_STATE, (state.term, state.voted_for, ",
        '    crc = hard_state_crc(state.term, "", state.commit_index, number)\n'
        '    connection.execute(_HARD_STATE, (state.term, "", ',
        (LEASES + "test_b01_a_vote_and_its_term_are_on_the_disks_that_gave_it",),
    ),
    Mutant(
        "B2",
        "a write counts before it is made",
        WRITER,
        "                self._storage.write(batches)\n",
        "                self._call(self._on_persisted, batches[-1].write_number)\n"
        "                self._storage.write(batches)\n",
        (LEASES + "test_b02_an_answer_waits_for_a_majority_of_disks",),
    ),
    Mutant(
        "B20",
        "a snapshot that was never installed counts",
        DIRECTORY,
        "            snapshots.drop_newer(restored.snapshot)\n",
        "",
        (
            CONTRACT + "test_b20_a_snapshot_that_was_never_installed_is_dropped_at_the_start",
            POINTS + "test_b20_a_crash_at_every_system_call_of_a_process",
        ),
    ),
    Mutant(
        "B20",
        "the log is replaced before its snapshot is there",
        SQLITE_LOG,
        "                self._snapshots.promote(batch.snapshot)\n",
        "                pass\n",
        (CONTRACT + "test_b20_two_installs_in_one_transaction",),
    ),
    Mutant(
        "B21",
        "entries are read without their check",
        SQLITE_LOG,
        "                and crc == entry_crc(index, term, number, kind, data)\n",
        "",
        (DAMAGE + "test_b21_damaged_rows_say_what_and_what_to_do",),
    ),
    Mutant(
        "B21",
        "damage in the journal is a torn tail",
        DATABASE,
        "            if journal.lost_commits(recovered):",
        "            if False:",
        (FAULTS + "test_b21_flips_in_a_compacted_log",),
    ),
    Mutant(
        "B21",
        "nobody remembers how many commits were acknowledged",
        SQLITE_LOG,
        "        if acknowledged > number:",
        "        if False:",
        (DAMAGE + "test_b21_flips_in_the_journal_after_a_kill",),
    ),
    Mutant(
        "B22",
        "blocks of a snapshot are read without their check",
        SNAPSHOT_FILE,
        "    if stored[size_bytes:] != _CRC.pack(zlib.crc32(data, number)):",
        "    if False:",
        (FAULTS + "test_b22_damage_after_the_start_is_found_by_each_read",),
    ),
    Mutant(
        "B22",
        "a snapshot of another size is taken",
        SNAPSHOT_FILE,
        "    if file.size_bytes != layout.file_size_bytes(info.size_bytes):",
        "    if file.size_bytes < layout.file_size_bytes(info.size_bytes):",
        (FAULTS + "test_b22_a_snapshot_with_more_behind_it_or_another_name_is_refused",),
    ),
    Mutant(
        "B22",
        "a peer whose snapshot is lost begins anew",
        SQLITE_LOG,
        "        if base.index > 0 and snapshot is None:",
        "        if False:",
        (FAULTS + "test_b22_a_lost_snapshot_is_refused",),
    ),
    Mutant(
        "B23",
        "a failed sync of a directory is passed over",
        DATABASE,
        "    except OSError as error:\n        raise StorageFailedError("
        'f"{path}: syncing the directory failed: {error}") from error',
        "    except OSError:\n        return",
        (CRASH + "test_b23_a_failed_fsync_ends_the_process_without_an_acknowledgement",),
        limit_s=120,
    ),
    Mutant(
        "B23",
        "commits are not synced",
        DATABASE,
        '    "PRAGMA synchronous=FULL",',
        '    "PRAGMA synchronous=OFF",',
        (CRASH + "test_b23_a_failed_fsync_ends_the_process_without_an_acknowledgement",),
        limit_s=120,
    ),
    Mutant(
        "B24",
        "a transaction that found the disk full stays open",
        DATABASE,
        "            try:\n                self._rollback()\n",
        "            try:\n                pass\n",
        (
            "tests/storage/test_sqlite_log.py::"
            "test_b24_transaction_that_found_the_disk_full_is_taken_back_as_a_whole",
        ),
    ),
    Mutant(
        "B24",
        "a snapshot without space for its header stays",
        "gaia_grpc/storage/snapshot_handles.py",
        "        except OSError:\n            self.abort()\n            raise\n",
        "        except OSError:\n            raise\n",
        (
            "tests/node/test_full_disk.py::"
            "test_b24_snapshot_on_a_full_disk_is_given_up_and_made_later",
        ),
    ),
    Mutant(
        "B24",
        "a full disk is a broken disk",
        DATABASE,
        "    if code == sqlite3.SQLITE_FULL:",
        "    if False:",
        (
            CRASH + "test_b24_a_full_disk_loses_nothing_and_needs_no_repair",
            CRASH + "test_b24_a_small_file_system_fills_up_and_serves_again",
        ),
        limit_s=120,
    ),
)
