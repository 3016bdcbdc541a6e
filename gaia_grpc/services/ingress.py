"""The one door through which requests become commands and queries.

A command is `Command` bytes in two parts that merge: the body, and who asked under which
request_id. The digest covers the first part alone, so it tells a retry from another request under
the same id (the field number of the body is in it: cancelling is no retry of requeueing).
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

from gaia.command.v1 import command_pb2, query_pb2
from gaia.common.v1 import common_pb2
from google.protobuf.message import Message

from gaia_grpc.config import PeerConfig
from gaia_grpc.errors import FieldViolation, InvalidArgumentError
from gaia_grpc.node.api import ReadConsistency, ReplicatedLog
from gaia_grpc.services.deadlines import Context, log_timeout_s
from gaia_grpc.services.error_table import refusal_error
from gaia_grpc.services.request_rules import build_validator
from gaia_grpc.services.validation import ID_RULE, is_id

CLIENT_KEY = "gaia-client"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A command that was applied and not refused, and where it stands in the log."""

    term: int
    index: int
    result: command_pb2.CommandResult


class Ingress:
    """What every servicer works with: the log, the configuration, and the way to both."""

    def __init__(self, log: ReplicatedLog, config: PeerConfig) -> None:
        self.log = log
        self.consensus = config.consensus
        self.limits = config.limits
        self._validator = build_validator(config.limits)

    def check(self, request: Message) -> None:
        """Raises `InvalidArgumentError` with everything that is wrong with the request's form."""
        self._validator.check(request)

    def page_size(self, asked: int) -> int:
        """The page size that a list request means."""
        return asked or self.limits.default_page_size

    async def submit(
        self,
        context: Context,
        body: command_pb2.Command,
        request_id: str = "",
        *,
        idempotent: bool = False,
        digest_body: command_pb2.Command | None = None,
    ) -> Outcome:
        """Proposes a command of which only the body is set; raises what it is refused with.

        `idempotent` commands (by token, key or sequence) need no request_id; any other without one
        gets an id of ours, so that forwarding may repeat it. `digest_body` stands in for the body
        in the digest, where a retry may differ in what does not matter.
        """
        client_id = client_of(context) if request_id else ""
        command = encode_command(body, request_id, client_id, idempotent, digest_body)
        return await propose(self.log, command, log_timeout_s(context, self.consensus))

    async def query(
        self,
        context: Context,
        query: query_pb2.Query,
        consistency: common_pb2.Consistency.ValueType,
    ) -> query_pb2.QueryResult:
        """Answers a query as fresh as asked; raises what it is refused with."""
        fresh = ReadConsistency.LINEARIZABLE
        if consistency == common_pb2.CONSISTENCY_LOCAL:
            fresh = ReadConsistency.LOCAL
        timeout_s = log_timeout_s(context, self.consensus)
        return await read(self.log, query, fresh, timeout_s)


def encode_command(
    body: command_pb2.Command,
    request_id: str,
    client_id: str,
    idempotent: bool,
    digest_body: command_pb2.Command | None = None,
) -> bytes:
    """The serialized command with its identity, as `Ingress.submit` proposes it."""
    encoded = body.SerializeToString(deterministic=True)
    if not request_id and idempotent:
        return encoded
    digested = encoded if digest_body is None else digest_body.SerializeToString(deterministic=True)
    identity = command_pb2.Command(
        client_id=client_id,
        request_id=request_id or str(uuid.uuid4()),
        request_digest=hashlib.sha256(digested).digest(),
        ingress_assigned=not request_id,
    )
    return encoded + identity.SerializeToString(deterministic=True)


async def propose(log: ReplicatedLog, command: bytes, timeout_s: float) -> Outcome:
    """Proposes serialized bytes and turns a refusal into the error that it stands for."""
    applied = await log.propose(command, timeout_s=timeout_s)
    result = command_pb2.CommandResult.FromString(applied.result)
    if result.HasField("refusal"):
        raise refusal_error(result.refusal)
    return Outcome(applied.term, applied.index, result)


async def read(
    log: ReplicatedLog, query: query_pb2.Query, consistency: ReadConsistency, timeout_s: float
) -> query_pb2.QueryResult:
    """Reads and turns a refusal into the error that it stands for."""
    answer = await log.read(query.SerializeToString(), consistency=consistency, timeout_s=timeout_s)
    result = query_pb2.QueryResult.FromString(answer)
    if result.HasField("refusal"):
        raise refusal_error(result.refusal)
    return result


def client_of(context: Context) -> str:
    """The client's own id from the call's metadata; scopes its request_ids. Empty where absent."""
    for key, value in context.invocation_metadata() or ():
        if key != CLIENT_KEY:
            continue
        if not isinstance(value, str) or not is_id(value):
            raise InvalidArgumentError(
                f"metadata {CLIENT_KEY}: {ID_RULE}", [FieldViolation(CLIENT_KEY, ID_RULE)]
            )
        return value
    return ""
