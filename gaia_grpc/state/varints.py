"""Whole numbers of any size as bytes, 7 bits each, the lowest first."""

from __future__ import annotations


def append(target: bytearray, value: int) -> None:
    """Appends a number that is not negative."""
    while value > 0x7F:
        target.append(value & 0x7F | 0x80)
        value >>= 7
    target.append(value)


def append_signed(target: bytearray, value: int) -> None:
    """Appends a number of either sign: small magnitudes are short."""
    append(target, value << 1 if value >= 0 else (-value << 1) - 1)


class Reader:
    """Reads numbers one after another. Raises `ValueError` where there are none left."""

    __slots__ = ("_data", "place")

    def __init__(self, data: bytes, place: int = 0) -> None:
        self._data = data
        self.place = place

    def take(self) -> int:
        """The next number."""
        value = shift = 0
        place = self.place
        data = self._data
        while place < len(data):
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                self.place = place
                return value
            shift += 7
        raise ValueError("numbers that are cut short")

    def take_signed(self) -> int:
        """The next number of either sign."""
        value = self.take()
        return -(value + 1 >> 1) if value & 1 else value >> 1

    def take_bytes(self, count: int) -> bytes:
        """The next bytes."""
        end = self.place + count
        if end > len(self._data):
            raise ValueError("bytes that are cut short")
        found = self._data[self.place : end]
        self.place = end
        return found

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self.place >= len(self._data)
