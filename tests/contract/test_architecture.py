"""The rules of the house that a linter does not know, checked on the syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "gaia_grpc"
TESTS = ROOT / "tests"

FILE_LINES = 400
FUNCTION_LINES = 60

CLOCK_OWNERS = ("cli/", "testing/", "classroom/", "client/", "web/")
"""`time.time` is wall time. Peers read it through the clock seam; programs of a user may."""

MATH_ALLOWED = frozenset({"isqrt", "gcd", "floor", "ceil", "isfinite", "isnan", "isinf", "inf"})
"""Exact on every machine; the rest of `math` depends on the C library."""

MOMENT_S = 0.05
"""Lets a call get under way where no event tells; too short, it weakens a test but fails none."""

Rule = Callable[[Path, ast.Module], Iterator[tuple[int, str]]]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def sources(root: Path) -> list[Path]:
    found = sorted(root.rglob("*.py"))
    assert found, f"no Python files under {root}"
    return found


def violations(rule: Rule, *roots: Path) -> list[str]:
    """Every place below the roots where the rule is broken, as `file:line: what`."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for root in roots
        for path in sources(root)
        for line, what in rule(path, parse(path))
    ]


def dotted(node: ast.expr) -> str:
    """`a.b.c` for a chain of names; the tail of it where the head is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else node.attr
    return ""


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


def in_folder(path: Path, *folders: str) -> bool:
    return path.relative_to(PACKAGE).as_posix().startswith(folders)


def long_file(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > FILE_LINES:
        yield lines, f"{lines} lines, allowed are {FILE_LINES}"


def long_function(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.lineno, f"{node.name}: {lines} lines, allowed are {FUNCTION_LINES}"


def bare_except(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "bare except"


def swallowed_exception(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ExceptHandler)
            and node.type is not None
            and dotted(node.type) in {"Exception", "BaseException"}
            and all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)
        ):
            yield node.lineno, "an exception of any kind is swallowed"


def wall_clock(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if in_folder(path, *CLOCK_OWNERS) or "clock" in path.name:
        return
    for call, name in calls(tree):
        if name in {"time.time", "time.time_ns"}:
            yield call.lineno, f"{name}() outside the clock seam"


def printing(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if in_folder(path, "cli/", "evaluation/"):
        return
    for call, name in calls(tree):
        if name == "print":
            yield call.lineno, "print() outside cli"


def dropped_task(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A task that nobody holds can be collected in the middle, and its error is lost."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = dotted(node.value.func)
            owner, _, method = name.rpartition(".")
            if method in {"create_task", "ensure_future"} and not owner.endswith(("group", "tg")):
                yield node.lineno, f"{name}() whose task is kept nowhere"


def blocking_sleep(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for call, name in calls(tree):
        if name == "time.sleep" and not in_folder(path, "cli/", "testing/"):
            yield call.lineno, "time.sleep() stops the loop"


def marker(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    words = tuple("".join(parts) for parts in (("TO", "DO"), ("FIX", "ME"), ("X", "XX")))
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if any(word in line for word in words):
            yield number, "an open end belongs in an issue"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            yield node.lineno, "NotImplementedError"


def inexact_math(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "math":
            for alias in node.names:
                if alias.name not in MATH_ALLOWED:
                    yield node.lineno, f"math.{alias.name} differs between machines"
        elif (
            isinstance(node, ast.Attribute)
            and dotted(node.value) == "math"
            and node.attr not in MATH_ALLOWED
        ):
            yield node.lineno, f"math.{node.attr} differs between machines"


def unordered_iteration(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The order of a set differs between processes (PYTHONHASHSEED)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.comprehension):
            over = node.iter
            made_here = isinstance(over, ast.Call) and dotted(over.func) in {"set", "frozenset"}
            if made_here or isinstance(over, ast.Set | ast.SetComp):
                yield over.lineno, "iterates over a set"


def hash_or_id(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for call, name in calls(tree):
        if name in {"hash", "id", "input", "open", "eval", "exec", "print"}:
            yield call.lineno, f"{name}() differs between processes or reaches outside"


def sleeping_test(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A fixed sleep is too short on a busy machine and too long on every other."""
    place = path.relative_to(TESTS).as_posix()
    if place.startswith(("e2e/", "benchmarks/", "chaos/")):
        return
    polls = {
        id(node)
        for loop in ast.walk(tree)
        if isinstance(loop, ast.While)
        for node in ast.walk(loop)
    }
    for call, name in calls(tree):
        if name not in {"asyncio.sleep", "time.sleep"} or id(call) in polls:
            continue
        length = (
            call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
        )
        if not (isinstance(length, int | float) and length <= MOMENT_S):
            yield call.lineno, f"{name}() in a test: wait for an event or advance the clock"


PACKAGE_RULES: list[Rule] = [
    long_file, long_function, bare_except, swallowed_exception, wall_clock, printing, dropped_task,
    blocking_sleep, marker,
]  # fmt: skip


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    assert violations(rule, PACKAGE) == []


@pytest.mark.parametrize("rule", [unordered_iteration, hash_or_id], ids=lambda rule: rule.__name__)
def test_the_pure_cores_keep_the_rule(rule: Rule) -> None:
    assert violations(rule, PACKAGE / "raft", PACKAGE / "state") == []


def test_the_state_machine_computes_alike_on_every_machine() -> None:
    assert violations(inexact_math, PACKAGE / "state") == []


@pytest.mark.parametrize(
    "rule", [bare_except, sleeping_test, marker, dropped_task], ids=lambda rule: rule.__name__
)
def test_the_tests_keep_the_rule(rule: Rule) -> None:
    assert violations(rule, TESTS) == []


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (long_file, "x = 1\n" * (FILE_LINES + 1)),
        (long_function, "def f():\n" + "    x = 1\n" * FUNCTION_LINES),
        (bare_except, "try:\n    pass\nexcept:\n    raise\n"),
        (swallowed_exception, "try:\n    pass\nexcept Exception:\n    pass\n"),
        (wall_clock, "import time\ntime.time()\n"),
        (printing, "print(1)\n"),
        (dropped_task, "asyncio.create_task(f())\n"),
        (blocking_sleep, "time.sleep(1)\n"),
        (marker, "raise NotImplemented" + "Error\n"),
        (inexact_math, "from math import exp\n"),
        (inexact_math, "import math\nmath.log(2)\n"),
        (unordered_iteration, "for x in {1, 2}:\n    pass\n"),
        (unordered_iteration, "y = [x for x in set(z)]\n"),
        (hash_or_id, "hash('a')\n"),
        (sleeping_test, "asyncio.sleep(1)\n"),
    ],
)
def test_each_rule_finds_what_it_looks_for(
    rule: Rule, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "TESTS", tmp_path)
    path = tmp_path / "node" / "broken.py"
    path.parent.mkdir()
    path.write_text(code)
    assert list(rule(path, ast.parse(code)))
