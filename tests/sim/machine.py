"""A small state machine with client sessions, and the oracle that applies each entry once.

Counters behind sessions (thesis 6.3): each request of a session carries a serial, and the answer to
the last one is kept, so that it may be sent again. Sessions end by the log's own time.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from gaia_grpc.raft.types import Entry, EntryKind
from tests.support.checkers import require

SESSION_MS = 150
MAX_SESSIONS = 8


def command(kind: str, session: int, serial: int, key: str, amount: int, now_ms: int) -> bytes:
    """What a leader puts into its log: the request, stamped with its clock."""
    return f"{kind} {session} {serial} {key} {amount} {now_ms}".encode()


class Machine:
    """State after `index`; `chain` is a hash over all entries and answers up to there."""

    __slots__ = ("chain", "counters", "done", "index", "now_ms", "sessions", "what")

    def __init__(self) -> None:
        self.index = 0
        self.chain = b""
        self.now_ms = 0
        self.counters: dict[str, int] = {}
        self.sessions: dict[int, tuple[int, str, int]] = {}
        """Session to (last serial, its answer, last used), least recently used first."""
        self.done: tuple[int, int] | None = None
        """(session, serial) where the last entry was carried out for the first time."""
        self.what = ""
        """What the last entry came to, for the counters of a run."""

    def apply(self, entry: Entry) -> str:
        """The answer; entries come in order."""
        require(entry.index == self.index + 1, f"applied {entry.index} after {self.index}")
        self.done, self.what = None, ""
        answer = self._command(entry) if entry.kind is EntryKind.COMMAND else ""
        self.index = int(entry.index)
        digest = hashlib.blake2b(self.chain, digest_size=12)
        digest.update(b"%d %d %d " % (entry.term, entry.index, self.now_ms))
        digest.update(entry.data)
        digest.update(f" {answer} {len(self.sessions)}".encode())
        self.chain = digest.digest()
        return answer

    def _command(self, entry: Entry) -> str:
        kind, session_text, serial_text, key, amount, stamp = entry.data.decode().split(" ")
        self.now_ms = max(self.now_ms, int(stamp))
        self._expire()
        if kind == "open":
            self.sessions[int(entry.index)] = (0, "", self.now_ms)
            if len(self.sessions) > MAX_SESSIONS:
                del self.sessions[next(iter(self.sessions))]
                self.what = "session_evicted"
            return f"opened {entry.index}"
        session, serial = int(session_text), int(serial_text)
        if session not in self.sessions:
            self.what = "request_of_ended_session"
            return "ended"
        last, answer, _ = self.sessions.pop(session)
        if serial > last:
            value = self.counters.get(key, 0) + int(amount)
            self.counters[key] = value
            last, answer = serial, str(value)
            self.done = (session, serial)
        else:
            self.what = "repeated_request" if serial == last else "overtaken_request"
            answer = answer if serial == last else "old"
        kept = answer if serial == last else ""
        self.sessions[session] = (last, kept, self.now_ms)
        return answer

    def _expire(self) -> None:
        while self.sessions:
            session = next(iter(self.sessions))
            if self.sessions[session][2] + SESSION_MS >= self.now_ms:
                return
            del self.sessions[session]
            self.what = "session_expired"

    def save(self) -> bytes:
        """The whole state."""
        sessions = [[session, *record] for session, record in self.sessions.items()]
        state = [self.index, self.chain.hex(), self.now_ms, sorted(self.counters.items()), sessions]
        return json.dumps(state, separators=(",", ":")).encode()

    @classmethod
    def load(cls, content: bytes) -> Machine:
        """The inverse of `save`."""
        index, chain, now_ms, counters, sessions = json.loads(content)
        machine = cls()
        machine.index, machine.chain, machine.now_ms = index, bytes.fromhex(chain), now_ms
        machine.counters = dict(counters)
        machine.sessions = {each[0]: (each[1], each[2], each[3]) for each in sessions}
        return machine


class Oracle:
    """One machine that applies every committed entry exactly once; what all others must equal."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.chains: list[bytes] = [b""]
        self.answers: list[str] = [""]
        self.done: dict[tuple[int, int], tuple[int, str]] = {}
        """(session, serial) to the index at which it was carried out, and its answer."""
        self.counts: Counter[str] = Counter()
        self._history: dict[str, tuple[list[int], list[int]]] = {}
        self._contents: dict[int, bytes] = {}

    def follow(self, committed: Sequence[Entry]) -> None:
        """Takes in what was committed since."""
        machine = self.machine
        for entry in committed[machine.index :]:
            answer = machine.apply(entry)
            self.chains.append(machine.chain)
            self.answers.append(answer)
            if machine.what:
                self.counts[machine.what] += 1
            if machine.done is not None:
                require(machine.done not in self.done, f"request {machine.done} was done twice")
                self.done[machine.done] = (machine.index, answer)
                key = entry.data.decode().split(" ")[3]
                indexes, values = self._history.setdefault(key, ([], []))
                indexes.append(machine.index)
                values.append(machine.counters[key])

    def check_state(self, name: str, machine: Machine) -> None:
        """A state is a function of the log up to its index, whatever way it was reached."""
        require(machine.index < len(self.chains), f"{name} applied what is not committed")
        require(
            machine.chain == self.chains[machine.index],
            f"the state of {name} at {machine.index} differs",
        )

    def check_content(self, name: str, index: int, content: bytes) -> None:
        """All snapshots of one index are equal to the byte."""
        known = self._contents.setdefault(index, content)
        require(known == content, f"the snapshot of {name} at {index} differs")

    def value_at(self, key: str, index: int) -> int:
        """What a read of the state at `index` returns."""
        indexes, values = self._history.get(key, ([], []))
        position = bisect_right(indexes, index)
        return values[position - 1] if position else 0
