"""Applies mutants one at a time in private copies of the tree and runs the tests that name them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.catalogue import ROOT, Mutant

COPIED = ("gaia_grpc", "generated", "tests", "protos", "pyproject.toml", "README.md", "Makefile")
BASELINE_LIMIT_S = 600.0
PYTEST = (
    "-m", "pytest", "-q", "-x", "--no-header", "--tb=no", "-rfE", "-p", "no:cacheprovider",
)  # fmt: skip
TESTS_FAILED = 1
"""Exit code of pytest; any other one but 0 means that the tests did not run."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the tests took a mutant."""

    mutant: Mutant
    killed_by: str
    """The first test that failed, or `time limit`; empty where it survived or did not run."""
    problem: str
    """Why it counts as a failure of `make mutants`."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run of pytest."""

    exit_code: int
    """-1 where the time was up."""
    output: str
    seconds: float

    def first_failure(self) -> str:
        """The test that failed first."""
        match = re.search(r"^(?:FAILED|ERROR) ([^\s\[]+)", self.output, re.MULTILINE)
        return match[1] if match else ""


@contextmanager
def private_copy() -> Iterator[Path]:
    """A copy of the tree that goes away; what is changed in it harms nobody."""
    with tempfile.TemporaryDirectory(prefix="gaia-mutants-") as name:
        folder = Path(name)
        ignored = shutil.ignore_patterns("__pycache__", "node_modules", "*.pyc")
        for item in COPIED:
            source = ROOT / item
            if source.is_dir():
                shutil.copytree(source, folder / item, ignore=ignored)
            else:
                shutil.copy(source, folder / item)
        # Checked by content: a file that is changed twice a second is never taken for the old one.
        compile_all = ["-m", "compileall", "-q", "--invalidation-mode", "checked-hash"]
        packages = [str(folder / item) for item in ("gaia_grpc", "generated", "tests")]
        subprocess.run([sys.executable, *compile_all, *packages], check=True, timeout=120)
        found = _python(folder, ["-c", "import gaia_grpc; print(gaia_grpc.__file__)"], 30).output
        if not found.startswith(str(folder)):
            raise RuntimeError(f"the copy is not what is imported: {found.strip()}")
        yield folder


def _python(folder: Path, arguments: Sequence[str], limit_s: float) -> Run:
    """Runs Python in the copy, with everything that it started gone at the end."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    environment |= {
        "PYTHONPATH": os.pathsep.join((str(folder), str(folder / "generated"))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GRPC_VERBOSITY": "NONE",
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        code = process.returncode
    except subprocess.TimeoutExpired:
        # First as Ctrl-C would: fixtures take down the peers, which are sessions of their own.
        os.killpg(process.pid, signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        code = -1
    return Run(code, output, time.monotonic() - began)


def run_tests(folder: Path, tests: Iterable[str], limit_s: float) -> Run:
    """Runs the named tests in a copy."""
    return _python(folder, [*PYTEST, *sorted(set(tests))], limit_s)


def judge(folder: Path, mutant: Mutant) -> Verdict:
    """Applies the mutant, runs its tests, and takes it back."""
    path = folder / mutant.path
    clean = path.read_text(encoding="utf-8")
    try:
        mutated = mutant.apply(clean)
    except ValueError as error:
        return Verdict(mutant, "", str(error), 0.0)
    path.write_text(mutated, encoding="utf-8")
    try:
        run = run_tests(folder, mutant.tests, mutant.limit_s)
    finally:
        path.write_text(clean, encoding="utf-8")
    if run.exit_code == -1:
        return Verdict(mutant, "time limit", "", run.seconds)
    if run.exit_code == TESTS_FAILED and run.first_failure():
        return Verdict(mutant, run.first_failure(), "", run.seconds)
    problem = "survived" if run.exit_code == 0 else f"its tests did not run:\n{run.output[-800:]}"
    return Verdict(mutant, "", problem, run.seconds)


def baseline(mutants: Sequence[Mutant]) -> Run:
    """All tests that the mutants name, on the tree as it is; they must pass."""
    with private_copy() as folder:
        return run_tests(folder, (t for m in mutants for t in m.tests), BASELINE_LIMIT_S)


def run_mutants(
    mutants: Sequence[Mutant], jobs: int, report: Callable[[Verdict], None]
) -> list[Verdict]:
    """The verdicts in the order of the mutants; `report` hears each as it is reached."""
    folders: SimpleQueue[Path] = SimpleQueue()

    def one(mutant: Mutant) -> Verdict:
        folder = folders.get()
        try:
            verdict = judge(folder, mutant)
        finally:
            folders.put(folder)
        report(verdict)
        return verdict

    with _copies(jobs) as made, ThreadPoolExecutor(jobs) as pool:
        for folder in made:
            folders.put(folder)
        return list(pool.map(one, mutants))


@contextmanager
def _copies(count: int) -> Iterator[list[Path]]:
    if count == 0:
        yield []
        return
    with private_copy() as first, _copies(count - 1) as others:
        yield [first, *others]
