"""The one error tree. Services map it to gRPC codes by one table; the SDK maps codes back to it.

Every class has a `reason`: the stable, upper-case word that travels in `google.rpc.ErrorInfo`
(domain `gaia`). Messages are for people and hold no secrets, since they leave the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

DOMAIN = "gaia"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field of a request: `field` is its proto path (`tasks[3].task_type`)."""

    field: str
    description: str


class GaiaError(Exception):
    """Root of all errors of this project."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after_ms = retry_after_ms
        self.instance_reason = reason or type(self).reason


class InvariantError(GaiaError):
    """A promise of the program itself is broken; the peer must stop."""

    reason = "INVARIANT"


def invariant(condition: bool, message: str) -> None:
    """Raises `InvariantError` unless `condition`; unlike `assert` it survives `python -O`."""
    if not condition:
        raise InvariantError(message)


# --- configuration and start ---


class ConfigError(GaiaError):
    """A flag, variable or file value is wrong; shown as one line, exit code 2."""

    reason = "CONFIG"


class StartupError(GaiaError):
    """The peer can't start (port in use, directory not writable, founding refused); exit code 1."""

    reason = "STARTUP"


class StorageError(GaiaError):
    """Something about the data directory."""

    reason = "STORAGE"


class StorageDamagedError(StorageError):
    """Stored bytes fail their check, and not as the torn tail of an unacknowledged write."""

    reason = "STORAGE_DAMAGED"


class StorageFullError(StorageError):
    """No space left; nothing of the write was kept."""

    reason = "STORAGE_FULL"


class StorageFailedError(StorageError):
    """A write or fsync failed; what is on disk is unknown, so the process must end."""

    reason = "STORAGE_FAILED"


class IdentityRefusedError(GaiaError):
    """A peer of another cluster, an unknown peer, or a wiped one that kept its name."""

    reason = "IDENTITY_REFUSED"


# --- the replicated log ---


class NotLeaderError(GaiaError):
    """This peer does not lead; `leader_id` is empty where no leader is known. Nothing was done."""

    reason = "NOT_LEADER"

    def __init__(self, message: str, *, leader_id: str = "") -> None:
        super().__init__(message, metadata={"leader_id": leader_id})
        self.leader_id = leader_id


class UnavailableError(GaiaError):
    """No leader or no quorum in time; definitely not applied."""

    reason = "NO_QUORUM"


class OutcomeUnknownError(GaiaError):
    """The command may or may not be applied; repeat it with the same request_id."""

    reason = "OUTCOME_UNKNOWN"


class DrainingError(UnavailableError):
    """The peer is stopping; another one will answer."""

    reason = "DRAINING"


class SnapshotRefusedError(GaiaError):
    """A transfer of a snapshot that can't go on; `instance_reason` names what was wrong."""

    reason = "SNAPSHOT_REFUSED"


class OverloadedError(GaiaError):
    """A queue or limit is full; definitely not applied; retry after `retry_after_ms`."""

    reason = "OVERLOADED"


# --- the domain (refusals of the state machine and of validation) ---


class DomainError(GaiaError):
    """A request that was understood and refused; definitely not applied."""

    reason = "REFUSED"


class InvalidArgumentError(DomainError):
    """Malformed or missing fields."""

    reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        message: str,
        violations: Sequence[FieldViolation] = (),
        *,
        metadata: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata, reason=reason)
        self.violations: tuple[FieldViolation, ...] = tuple(violations)


class NotFoundError(DomainError):
    """No such session, task, lock, classroom, student or alert."""

    reason = "NOT_FOUND"


class AlreadyExistsError(DomainError):
    """The name is taken, or the same id or key came with other content."""

    reason = "ALREADY_EXISTS"


class FailedPreconditionError(DomainError):
    """The state does not allow it (stale token, illegal transition)."""

    reason = "FAILED_PRECONDITION"


class StaleClaimError(FailedPreconditionError):
    """The claim token is not the current one; metadata names who holds the task."""

    reason = "STALE_CLAIM"


class StaleLockError(FailedPreconditionError):
    """The fencing token is not the current one; metadata names who holds the lock."""

    reason = "STALE_LOCK"


class LockHeldError(FailedPreconditionError):
    """Somebody else held the lock for as long as was waited; metadata names who."""

    reason = "LOCK_HELD"


class LockLostError(StaleLockError):
    """A lock was lost before its block ended: others may have held it meanwhile."""

    reason = "LOCK_LOST"


class TaskOutcomeError(FailedPreconditionError):
    """A task that somebody waited for has no result (yet); the fields say how it stands."""

    reason = "TASK_OUTCOME"

    def __init__(
        self,
        message: str,
        *,
        task_id: str,
        task_type: str = "",
        state: str = "",
        error_type: str = "",
        last_error: str = "",
        retry_count: int = 0,
    ) -> None:
        super().__init__(message, metadata={"task_id": task_id, "state": state})
        self.task_id = task_id
        self.task_type = task_type
        self.state = state
        """As TaskState without its prefix, `FAILED`."""
        self.error_type = error_type
        """Kind of the last error, as its worker named it."""
        self.last_error = last_error
        self.retry_count = retry_count
        """Failed attempts."""


class TaskFailedError(TaskOutcomeError):
    """The task is a dead letter: out of retries, failed for good, too late, or for a dependency."""

    reason = "TASK_FAILED"


class TaskCancelledError(TaskOutcomeError):
    """Somebody called the task off."""

    reason = "TASK_CANCELLED"


class TaskNotDoneError(TaskOutcomeError):
    """The task is still open after all the time that was waited; it goes on."""

    reason = "TASK_NOT_DONE"


class UndecodableError(InvalidArgumentError):
    """Bytes of a payload or a result that the codec can't read; trying again reads the same."""

    reason = "UNDECODABLE"


class ConfigurationRefusedError(FailedPreconditionError):
    """A change of the members that is not safe now, or makes no sense."""

    reason = "CONFIGURATION_REFUSED"


class OutOfRangeError(DomainError):
    """The sequence is older than what is retained."""

    reason = "OUT_OF_RANGE"


class ResourceExhaustedError(DomainError):
    """A replicated limit is reached (queue full, request table full)."""

    reason = "RESOURCE_EXHAUSTED"


class UnimplementedError(DomainError):
    """The method is part of the contract and not served yet."""

    reason = "UNIMPLEMENTED"


class PermissionDeniedError(DomainError):
    """The principal may not do this."""

    reason = "PERMISSION_DENIED"
