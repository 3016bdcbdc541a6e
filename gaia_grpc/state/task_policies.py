"""How tasks of a type are tried again: its policy, and the settings for what that leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gaia.command.v1 import command_pb2, query_pb2
from gaia.task.v1 import task_pb2
from google.protobuf.duration_pb2 import Duration

from gaia_grpc.state import page_tokens, refusal
from gaia_grpc.state.context import CommandHandler, Context, QueryHandler
from gaia_grpc.state.messages import timestamp
from gaia_grpc.state.refusal import refused
from gaia_grpc.state.settings import BY_NAME, format_duration, parse_duration_ms
from gaia_grpc.state.snapshot import Frozen, Part, records_section
from gaia_grpc.state.task_record import Task

MOST_POLICIES: Final = 1_000
MOST_FINAL_ERROR_TYPES: Final = 64
MOST_NAME_CHARACTERS: Final = 128
FULL_RETRY_MS = 1_000
MICRO = 1_000_000

DURATIONS: Mapping[str, str] = {
    "retry_base": "task.retry_base",
    "retry_max_delay": "task.retry_max_delay",
    "claim_timeout": "task.claim_timeout",
    "retention": "task.retention",
}
"""Field of a policy -> the setting that it takes the place of, with the same bounds."""


def _milliseconds(message: task_pb2.TaskPolicy, field: str) -> int | None:
    if not message.HasField(field):  # type: ignore[arg-type]  # one of DURATIONS
        return None
    return _whole_ms(getattr(message, field))


def _whole_ms(duration: Duration) -> int:
    """Rounded up: a wait is never cut short."""
    return duration.seconds * 1_000 + -(-duration.nanos // MICRO)


class Policy:
    """A policy and its numbers; None is left to the settings. Never changed."""

    __slots__ = (
        "claim_timeout_ms",
        "final_error_types",
        "jitter_micro",
        "max_retries",
        "message",
        "retention_ms",
        "retry_base_ms",
        "retry_max_delay_ms",
    )

    def __init__(self, message: task_pb2.TaskPolicy) -> None:
        self.message = message
        self.max_retries = message.max_retries if message.HasField("max_retries") else None
        self.jitter_micro: int | None = None
        if message.HasField("retry_jitter"):
            self.jitter_micro = round(message.retry_jitter * MICRO)
        self.retry_base_ms = _milliseconds(message, "retry_base")
        self.retry_max_delay_ms = _milliseconds(message, "retry_max_delay")
        self.claim_timeout_ms = _milliseconds(message, "claim_timeout")
        self.retention_ms = _milliseconds(message, "retention")
        self.final_error_types = frozenset(message.final_error_types)  # only asked for members


NO_POLICY: Final = Policy(task_pb2.TaskPolicy())


class TaskPolicies:
    """The policies by type. What they say holds for what happens from now on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._policies: dict[str, Policy] = {}
        self._frozen = Frozen(self._policies, _encode)
        self.parts: Sequence[Part] = (records_section("task_policy", self._frozen, self._load),)
        self.commands: Mapping[str, CommandHandler] = {
            "put_task_policy": self.put,
            "delete_task_policy": self.delete,
        }
        self.queries: Mapping[str, QueryHandler] = {"list_task_policies": self.list_page}

    def of(self, task_type: str) -> Policy:
        """The policy of a type; one that says nothing where there is none."""
        return self._policies.get(task_type, NO_POLICY)

    # --- what holds for a task

    def max_retries(self, task_type: str) -> int:
        """Retries of a task that names no number itself."""
        most = self.of(task_type).max_retries
        return self._context.settings.integer("task.max_retries") if most is None else most

    def claim_timeout_ms(self, task_type: str) -> int:
        """How long a claim lives that is not extended."""
        timeout_ms = self.of(task_type).claim_timeout_ms
        if timeout_ms is None:
            return self._context.settings.milliseconds("task.claim_timeout")
        return timeout_ms

    def backoff_ms(self, task: Task) -> int:
        """The wait before the retry after `retry_count` failed attempts."""
        settings = self._context.settings
        policy = self.of(task.task_type)
        base_ms, most_ms = policy.retry_base_ms, policy.retry_max_delay_ms
        if base_ms is None:
            base_ms = settings.milliseconds("task.retry_base")
        if most_ms is None:
            most_ms = settings.milliseconds("task.retry_max_delay")
        jitter_micro = policy.jitter_micro
        if jitter_micro is None:
            jitter_micro = round(settings.number("task.retry_jitter") * MICRO)
        # 2^(retry_count - 1) * base; beyond 2^40 every delay is over the most.
        wait_ms = min(base_ms << min(task.retry_count - 1, 40), most_ms)
        return wait_ms - (wait_ms * jitter_micro * _share(task) >> 32) // MICRO

    # --- commands and the query

    def put(self, body: task_pb2.TaskPolicy) -> command_pb2.CommandResult:
        """Gives the whole policy of one type."""
        policy = _checked(body)
        if body.task_type not in self._policies and len(self._policies) >= MOST_POLICIES:
            raise refused(
                refusal.RESOURCE_EXHAUSTED,
                "TOO_MANY_POLICIES",
                f"there may be {MOST_POLICIES} policies; delete one first",
                retry_after_ms=FULL_RETRY_MS,
            )
        policy.update_time.CopyFrom(timestamp(self._context.now_ms))
        self._frozen.changing(policy.task_type)
        self._policies[policy.task_type] = Policy(policy)
        return command_pb2.CommandResult(task_policy=policy)

    def delete(self, body: command_pb2.DeleteTaskPolicy) -> command_pb2.CommandResult:
        """Lets the settings hold for the type again."""
        policy = self._policies.get(body.task_type)
        if policy is None:
            raise refusal.not_found("task_policy", body.task_type)
        self._frozen.changing(body.task_type)
        del self._policies[body.task_type]
        return command_pb2.CommandResult(task_policy=policy.message)

    def list_page(
        self, body: task_pb2.ListTaskPoliciesRequest, now_ms: int
    ) -> query_pb2.QueryResult:
        """One page in the order of the types."""
        del now_ms
        size = page_tokens.page_size(body.page_size)
        last = page_tokens.decode(body, body.page_token)
        names = sorted(name for name in self._policies if name > last)
        answer = task_pb2.ListTaskPoliciesResponse(
            policies=[self._policies[name].message for name in names[:size]]
        )
        if len(names) > size:
            answer.next_page_token = page_tokens.encode(body, names[size - 1])
        return query_pb2.QueryResult(list_task_policies=answer)

    def _load(self, record: bytes) -> None:
        message = task_pb2.TaskPolicy.FromString(record)
        if message.task_type in self._policies:
            raise ValueError(f"the policy of {message.task_type!r} is there twice")
        self._policies[message.task_type] = Policy(message)


def _encode(task_type: str, policy: Policy) -> bytes:
    del task_type
    return policy.message.SerializeToString(deterministic=True)


def _share(task: Task) -> int:
    """0 to 2^32 - 1, evenly spread over tasks and attempts and the same on every peer.

    The finishing steps of SplitMix64 (Steele, Lea, Flood 2014): neighbours have unlike values.
    """
    mask = (1 << 64) - 1
    mixed = (task.number << 10 ^ task.retry_count) * 0x9E3779B97F4A7C15 & mask
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
    return (mixed ^ mixed >> 31) >> 32


def _checked(body: task_pb2.TaskPolicy) -> task_pb2.TaskPolicy:
    """A copy whose values are within the bounds of the settings, in whole milliseconds."""
    policy = task_pb2.TaskPolicy()
    policy.CopyFrom(body)
    if not 0 < len(body.task_type) <= MOST_NAME_CHARACTERS:
        raise refusal.invalid(
            "policy.task_type", f"task_type needs 1 to {MOST_NAME_CHARACTERS} characters"
        )
    most = BY_NAME["task.max_retries"].maximum
    if not 0 <= body.max_retries <= int(most):
        raise refusal.invalid("policy.max_retries", f"max_retries is not within 0 to {most}")
    if not 0 <= body.retry_jitter <= 1:
        raise refusal.invalid("policy.retry_jitter", "retry_jitter is not within 0 to 1")
    for field, setting in DURATIONS.items():
        value_ms = _milliseconds(body, field)
        if value_ms is None:
            continue
        low, high = BY_NAME[setting].minimum, BY_NAME[setting].maximum
        if not parse_duration_ms(low) <= value_ms <= parse_duration_ms(high):
            raise refusal.invalid(
                f"policy.{field}",
                f"{field} {format_duration(max(value_ms, 0))} is not within {low} to {high}",
            )
        getattr(policy, field).CopyFrom(
            Duration(seconds=value_ms // 1_000, nanos=value_ms % 1_000 * MICRO)
        )
    if len(body.final_error_types) > MOST_FINAL_ERROR_TYPES:
        raise refusal.invalid(
            "policy.final_error_types", f"more than {MOST_FINAL_ERROR_TYPES} final_error_types"
        )
    for position, name in enumerate(body.final_error_types):
        if not 0 < len(name) <= MOST_NAME_CHARACTERS:
            raise refusal.invalid(
                f"policy.final_error_types[{position}]",
                f"an error type needs 1 to {MOST_NAME_CHARACTERS} characters",
            )
    return policy
