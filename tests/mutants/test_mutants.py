"""The list of deliberate bugs is whole and fresh, and the core's are noticed on every run."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutants.catalogue import BUG_CLASSES, ROOT, Mutant, all_mutants, named_tests, prefix_of
from tests.mutants.runner import Verdict, judge, private_copy, run_mutants

JOBS = 2


@pytest.mark.parametrize("bug", BUG_CLASSES)
def test_each_class_of_bugs_has_a_named_test_and_a_mutant_that_names_it(bug: str) -> None:
    prefix = prefix_of(bug)
    assert any(test.rpartition("::")[2].startswith(prefix) for test in named_tests())
    naming = [mutant for mutant in all_mutants() if mutant.bug == bug]
    assert naming
    for mutant in naming:
        names = [test.rpartition("::")[2] for test in mutant.tests]
        assert any(name.startswith(prefix) for name in names), mutant.label


@pytest.mark.parametrize("mutant", all_mutants(), ids=lambda mutant: mutant.label)
def test_each_mutant_still_fits_the_code_and_its_tests_exist(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    mutated = mutant.apply(text)
    assert mutated != text
    compile(mutated, mutant.path, "exec")  # what can't be imported would prove nothing
    assert mutant.tests
    for test in mutant.tests:
        assert test.partition("[")[0] in named_tests(), test


def test_no_name_is_used_twice() -> None:
    assert not [
        name for name, count in Counter(m.label for m in all_mutants()).items() if count > 1
    ]


@pytest.mark.timeout(240)
def test_the_mutants_of_the_core_are_killed() -> None:
    """The fast ones; `make mutants` runs all of them."""
    seen: list[Verdict] = []
    verdicts = run_mutants([m for m in all_mutants() if m.fast], JOBS, seen.append)
    assert len(verdicts) >= 20
    assert [
        f"{verdict.mutant.label}: {verdict.problem}" for verdict in seen if verdict.problem
    ] == []


def test_a_mutant_that_changes_nothing_survives_and_one_that_does_not_fit_is_an_error() -> None:
    tests = ("tests/raft/test_quorum.py",)
    path = "gaia_grpc/raft/quorum.py"
    harmless = Mutant(
        "none", "harmless", path, "from __future__ import", "from __future__  import", tests
    )
    misfit = Mutant("none", "misfit", path, "no such text", "", tests)
    broken = Mutant(
        "none", "broken", path, "from __future__ import annotations", "syntax error", tests
    )
    with private_copy() as folder:
        assert judge(folder, harmless).problem == "survived"
        assert "0 times" in judge(folder, misfit).problem
        assert "did not run" in judge(folder, broken).problem
        assert (folder / path).read_text() == (ROOT / path).read_text()
