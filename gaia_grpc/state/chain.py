"""The chain hash: two peers with equal hashes applied the same commands with the same results."""

from __future__ import annotations

import hashlib
from collections import deque

KEPT = 4_096
START = bytes(32)


class ChainHash:
    """SHA-256 over (previous, index, kind, data, result), with the last values kept by index."""

    __slots__ = ("_kept", "index", "value")

    def __init__(self) -> None:
        self.index = 0
        self.value = START
        self._kept: deque[bytes] = deque([START], maxlen=KEPT)

    def restore(self, index: int, value: bytes) -> None:
        """Goes on after `index`; earlier values are not known."""
        self.index = index
        self.value = value
        self._kept.clear()
        self._kept.append(value)

    def extend(self, index: int, kind: int, data: bytes, result: bytes) -> None:
        """Adds the next entry; `index` is one more than the last."""
        digest = hashlib.sha256(self.value)
        digest.update(index.to_bytes(8, "big"))
        digest.update(kind.to_bytes(1, "big"))
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
        digest.update(len(result).to_bytes(4, "big"))
        digest.update(result)
        self.index = index
        self.value = digest.digest()
        self._kept.append(self.value)

    def at(self, index: int) -> bytes | None:
        """The value after the entry `index`; None where it is not kept or not reached."""
        age = self.index - index
        if age < 0 or age >= len(self._kept):
            return None
        return self._kept[-1 - age]
