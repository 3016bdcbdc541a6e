"""How payloads and results become bytes: the cluster stores bytes and looks into none of them."""

from __future__ import annotations

import json
from typing import Any, Protocol, TypeVar

from gaia_grpc.errors import InvalidArgumentError, UndecodableError

Value = TypeVar("Value")


class Codec(Protocol[Value]):
    """Both ways between a value and bytes; no state, any number of threads."""

    def encode(self, value: Value, /) -> bytes:
        """Raises `InvalidArgumentError` for a value that it has no bytes for."""
        ...

    def decode(self, data: bytes, /) -> Value:
        """Raises `UndecodableError` for bytes that it did not make."""
        ...


class _Bytes:
    """Bytes as they are."""

    def encode(self, value: bytes, /) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            kind = type(value).__name__
            raise InvalidArgumentError(
                f"{kind} is not bytes: encode it, or name a codec (codec=JSON)"
            )
        return bytes(value)

    def decode(self, data: bytes, /) -> bytes:
        return data


class _Json:
    """What `json` knows, as compact UTF-8 with sorted keys; no bytes at all are None."""

    def encode(self, value: Any, /) -> bytes:
        try:
            text = json.dumps(
                value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
            )
            return text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"this has no JSON: {error}") from error

    def decode(self, data: bytes, /) -> Any:
        if not data:
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UndecodableError(f"{len(data)} bytes are no JSON: {error}") from error


BYTES: Codec[bytes] = _Bytes()
JSON: Codec[Any] = _Json()
