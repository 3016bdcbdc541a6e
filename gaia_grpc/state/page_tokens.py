"""Page tokens: the key after which the next page begins, bound to what the list selects.

A token holds no place in any peer's memory, so it works on every peer and after any failure.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from google.protobuf.message import Message

from gaia_grpc.state.refusal import Refused, invalid

VERSION = b"1"
DIGEST_BYTES = 6


def encode(request: Message, last_key: str) -> str:
    """A token for the page after `last_key` of this list request."""
    raw = VERSION + _selection(request) + last_key.encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def decode(request: Message, token: str) -> str:
    """The key after which to go on; empty for the first page (an empty token).

    Raises `Refused` (INVALID_ARGUMENT) for a token that is damaged or belongs to another list.
    """
    if not token:
        return ""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        version, digest = raw[:1], raw[1 : 1 + DIGEST_BYTES]
        last_key = raw[1 + DIGEST_BYTES :].decode()
    except (binascii.Error, ValueError) as error:
        raise _bad() from error
    if version != VERSION or digest != _selection(request) or not last_key:
        raise _bad()
    return last_key


def page_size(requested: int, default: int = 100, maximum: int = 1_000) -> int:
    """The size to use: 0 takes the default. Raises `Refused` outside 0 to `maximum`."""
    if not 0 <= requested <= maximum:
        raise invalid("page_size", f"page_size {requested} is not within 0 to {maximum}")
    return requested or default


def _selection(request: Message) -> bytes:
    """A digest of what is selected; size, place and consistency may differ from page to page."""
    bare = type(request)()
    bare.CopyFrom(request)
    for field in ("page_size", "page_token", "consistency"):
        if field in request.DESCRIPTOR.fields_by_name:
            bare.ClearField(field)
    digest = hashlib.sha256(request.DESCRIPTOR.full_name.encode())
    digest.update(bare.SerializeToString(deterministic=True))
    return digest.digest()[:DIGEST_BYTES]


def _bad() -> Refused:
    return invalid("page_token", "the page_token is not one of this list")
