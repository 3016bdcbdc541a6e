"""TESTING.md names tests that exist, and every scenario, defect and complaint has one."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest

from tests.mutants.catalogue import ROOT, named_tests

DEFECTS = (*range(1, 21), 24, 25)
DETECTOR_DEFECTS = range(1, 9)
COMPLAINTS = range(1, 10)
SCENARIOS = tuple(
    f"{area}{number}"
    for area, count in (("C", 6), ("T", 8), ("M", 7), ("A", 5), ("F", 8))
    for number in range(1, count + 1)
)


def names() -> list[str]:
    return [test.rpartition("::")[2] for test in named_tests()]


def table() -> list[str]:
    return (ROOT / "TESTING.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_scenario_has_a_line_with_tests(scenario: str) -> None:
    [line] = [line for line in table() if re.match(rf"\| (?:.*, )?{scenario} ", line)]
    assert re.search(r"`\S*test_\w+", line)


def test_each_name_in_the_table_is_a_test_or_a_file_of_tests() -> None:
    found = re.findall(r"`(\S*test_[\w*]+(?:\.py)?)`", "\n".join(table()))
    assert len(found) > 30
    assert [name for name in found if not matches(name)] == []


def matches(pattern: str) -> bool:
    """Whether a test or a file of tests has this name; `N` stands for a number."""
    last = pattern.rpartition("/")[2]
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    known = [*files, *(file.removesuffix(".py") for file in files), *names()]
    return any(fnmatch(name, last.replace("_N_", "_[0-9]*_")) for name in known)


@pytest.mark.parametrize("number", DEFECTS)
def test_each_defect_of_the_original_has_a_named_test(number: int) -> None:
    assert any(name.startswith(f"test_defect_{number}_") for name in names())


@pytest.mark.parametrize("number", DETECTOR_DEFECTS)
def test_each_defect_of_the_detector_has_a_named_test(number: int) -> None:
    assert any(name.startswith(f"test_detector_defect_{number}_") for name in names())


@pytest.mark.parametrize("number", COMPLAINTS)
def test_each_complaint_has_a_named_test_on_real_peers(number: int) -> None:
    prefix = f"test_complaint_{number}_"
    here = [test for test in named_tests() if test.startswith("tests/e2e/")]
    assert any(test.rpartition("::")[2].startswith(prefix) for test in here)
