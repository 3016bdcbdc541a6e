"""Another log can stand underneath (design section 3): what is above `node/` sees only its seam.

import-linter forbids whole layers; this looks at each import by name. That the seam is wide enough
is shown by tests/services and by the scenarios marked `both_logs`, which run over another log too.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.contract.test_architecture import PACKAGE, parse, sources

SEAM = "gaia_grpc.node.api"
BELOW = ("gaia_grpc.node", "gaia_grpc.raft", "gaia_grpc.storage", "gaia_grpc.transport")
SHARED_WITH_STATE = frozenset(
    f"gaia_grpc.state.{name}"
    for name in ("channels", "omissions", "packing", "rosters", "settings", "topics")
)
"""Rules that ingress and apply must agree on: functions and names, no state."""
HOLDS_STATE = frozenset(
    f"gaia_grpc.state.{name}"
    for name in ("machine", "tables", "context", "sessions", "tasks", "metrics", "alerts")
)


def imports(path: Path) -> set[str]:
    """Every module of this package that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            module = node.module or ""
            found.add(module)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("gaia_grpc")}


def is_module(name: str) -> bool:
    place = PACKAGE.parent / name.replace(".", "/")
    return place.with_suffix(".py").is_file() or place.is_dir()


@pytest.mark.parametrize("path", sources(PACKAGE / "services"), ids=lambda path: path.stem)
def test_a_service_knows_the_log_by_its_seam_only(path: Path) -> None:
    modules = {name for name in imports(path) if is_module(name)} - {"gaia_grpc"}
    below = {name for name in modules if name.startswith(BELOW)}
    assert below <= {SEAM, "gaia_grpc.node"}
    state = {name for name in modules if name.startswith("gaia_grpc.state.")}
    assert state <= SHARED_WITH_STATE


@pytest.mark.parametrize("name", sorted(SHARED_WITH_STATE))
def test_what_is_shared_with_the_state_machine_holds_no_state(name: str) -> None:
    path = PACKAGE.parent / f"{name.replace('.', '/')}.py"
    assert not imports(path) & HOLDS_STATE


def test_the_seam_passes_commands_and_answers_as_bytes() -> None:
    """Nothing of the state or of the stored log crosses it, also not as a type."""
    path = PACKAGE / "node" / "api.py"
    modules = {name for name in imports(path) if is_module(name)}
    assert modules <= {"gaia_grpc.raft.effects"}  # the names of the roles


def test_the_rule_sees_a_service_that_reaches_around_the_seam(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def f():\n    from gaia_grpc.node.engine import Engine\n")
    assert "gaia_grpc.node.engine" in imports(path)
