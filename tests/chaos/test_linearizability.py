"""The linearizability checker against brute force: every order of small histories is tried."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from tests.chaos.linearizability import NEVER, Model, Operation, State, Verdict, check
from tests.chaos.models import setting_model, task_model

HISTORIES = 1_500


def register_model(state: State, operation: Operation) -> State | None:
    """("write", v); ("cas", expected, v), answered True or False; ("read",), answered with v."""
    match operation.action:
        case ("write", value):
            return value
        case ("cas", expected, value):
            if operation.is_pending or operation.answer is (state == expected):
                return value if state == expected else state
            return None
        case _:
            return state if operation.is_pending or operation.answer == state else None


def brute_force(operations: Sequence[Operation], model: Model, initial: State) -> bool:
    """Tries each order of each choice of pending operations."""
    known = [operation for operation in operations if not operation.is_pending]
    pending = [operation for operation in operations if operation.is_pending]
    for count in range(len(pending) + 1):
        for chosen in itertools.combinations(pending, count):
            for order in itertools.permutations([*known, *chosen]):
                if _explains(order, model, initial):
                    return True
    return False


def _explains(order: Sequence[Operation], model: Model, initial: State) -> bool:
    for place, operation in enumerate(order):
        if any(later.returned_at < operation.called_at for later in order[place + 1 :]):
            return False
    state: State | None = initial
    for operation in order:
        state = model(state, operation)
        if state is None:
            return False
    return True


def random_history(draw: random.Random) -> list[Operation]:
    """Up to six operations; answers come from a real register, some of them changed."""
    operations: list[Operation] = []
    state = 0
    now = 0.0
    wrong = draw.random() < 0.4
    for number in range(draw.randint(1, 6)):
        now += draw.random()
        called_at, returned_at = now - draw.random() * 2, now + draw.random() * 2
        action: tuple[object, ...] = draw.choice(
            [("write", number + 1), ("read",), ("read",), ("cas", state, number + 1), ("cas", 9, 8)]
        )
        answer: object = None
        if action[0] == "write":
            state = number + 1
        elif action[0] == "read":
            answer = state
            if wrong and draw.random() < 0.5:
                answer = draw.randint(0, number + 1)
        else:
            answer = state == action[1]
            state = number + 1 if answer else state
        if draw.random() < 0.15:
            returned_at = NEVER
        operations.append(Operation(called_at, returned_at, action, answer))
    return operations


def test_agrees_with_brute_force_on_random_histories() -> None:
    draw = random.Random(17)
    violated = 0
    for number in range(HISTORIES):
        history = random_history(draw)
        expected = brute_force(history, register_model, 0)
        violated += not expected
        found = check(history, register_model, 0)
        assert found is (Verdict.LINEARIZABLE if expected else Verdict.VIOLATED), (number, history)
    assert 0.1 < violated / HISTORIES < 0.6, "both kinds must be there in numbers"


def ops(*rows: tuple[float, float, object, object]) -> list[Operation]:
    return [Operation(call, back, action, answer) for call, back, action, answer in rows]


def test_a_stale_read_is_found() -> None:
    history = ops(
        (0, 1, ("write", "a"), None), (2, 3, ("write", "b"), None), (4, 5, ("read",), "a")
    )
    assert check(history, register_model, "") is Verdict.VIOLATED


def test_a_value_that_comes_back_is_found() -> None:
    """One write that took effect twice, around another one."""
    history = ops(
        (0, 9, ("write", "a"), None),
        (1, 2, ("read",), "a"),
        (3, 4, ("write", "b"), None),
        (5, 6, ("read",), "b"),
        (7, 8, ("read",), "a"),
    )
    assert check(history, register_model, "") is Verdict.VIOLATED
    assert check(history[:-1], register_model, "") is Verdict.LINEARIZABLE


def test_an_unknown_write_may_take_effect_late_or_never() -> None:
    unknown = Operation(0, NEVER, ("write", "x"))
    late = ops((5, 6, ("read",), ""), (7, 8, ("read",), "x"))
    never = ops((5, 6, ("read",), ""), (7, 8, ("read",), ""))
    back = ops((5, 6, ("read",), "x"), (7, 8, ("read",), ""))
    assert check([unknown, *late], register_model, "") is Verdict.LINEARIZABLE
    assert check([unknown, *never], register_model, "") is Verdict.LINEARIZABLE
    assert check([unknown, *back], register_model, "") is Verdict.VIOLATED


def test_what_takes_too_long_is_not_verified() -> None:
    writes = [Operation(0, 1, ("write", number)) for number in range(30)]
    reads = [Operation(2, 3, ("read",), 99)]
    assert check([*writes, *reads], register_model, 0, budget_s=0.05) is Verdict.NOT_VERIFIED


@pytest.mark.parametrize(
    ("action", "answer", "before", "after"),
    [
        (("extend", "c2"), None, ("c1", None), ("c2", None)),
        (("extend", "c2"), None, ("c1", "done"), None),
        (("complete", "r"), None, ("c1", None), ("c1", "r")),
        (("complete", "r"), None, ("c1", "other"), None),
        (("read",), ("c1", None), ("c1", None), ("c1", None)),
        (("read",), ("c0", None), ("c1", None), None),
    ],
)
def test_model_of_a_claimed_task(
    action: tuple[str, ...], answer: object, before: State, after: State | None
) -> None:
    operation = Operation(0, 1, action, answer)
    assert task_model(before, operation) == after


@pytest.mark.parametrize(
    ("action", "answer", "before", "after"),
    [
        (("set", "v"), 4, (3, "u"), (4, "v")),
        (("set", "v"), 5, (3, "u"), None),
        (("cas", 3, "v"), 4, (3, "u"), (4, "v")),
        (("cas", 2, "v"), 4, (3, "u"), None),
        (("cas", 2, "v"), "refused", (3, "u"), (3, "u")),
        (("cas", 3, "v"), "refused", (3, "u"), None),
        (("read",), (3, "u"), (3, "u"), (3, "u")),
        (("read",), (2, "t"), (3, "u"), None),
    ],
)
def test_model_of_the_settings(
    action: tuple[object, ...], answer: object, before: State, after: State | None
) -> None:
    operation = Operation(0, 1, action, answer)
    assert setting_model(before, operation) == after
