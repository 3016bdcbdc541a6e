"""Settings: how values are written, their bounds, and all-or-none changes through the log."""

from __future__ import annotations

import pytest
from gaia.cluster.v1 import cluster_pb2
from hypothesis import given
from hypothesis import strategies as st

from gaia_grpc.errors import InvalidArgumentError
from gaia_grpc.state.setting_table import ORDERED_PAIRS
from gaia_grpc.state.settings import (
    BY_NAME,
    DEFINITIONS,
    MAX_RETENTIONS,
    SettingKind,
    Settings,
    format_duration,
    format_setting,
    parse_duration_ms,
    parse_retentions,
    parse_setting,
    parse_value,
)
from tests.state.harness import Log


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("200ms", 200),
        ("1.5s", 1_500),
        ("10m", 600_000),
        ("0s", 0),
        ("1.5h", 5_400_000),
        ("1d", 86_400_000),
        ("0.25s", 250),
        ("1.500s", 1_500),
    ],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert parse_duration_ms(text) == milliseconds


@pytest.mark.parametrize(
    "text",
    ["", "15", "s", "1.5", "-1s", "1e3s", "1 s", "1S", "0.0001s", "1.s", ".5s", "٣s", "1s\n"],
)
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|milliseconds"):
        parse_duration_ms(text)


@given(st.integers(0, 10**12))
def test_a_duration_is_written_as_it_is_read(milliseconds: int) -> None:
    assert parse_duration_ms(format_duration(milliseconds)) == milliseconds


def test_short_forms() -> None:
    assert [format_duration(ms) for ms in (0, 200, 1_000, 1_500, 90_000, 600_000, 86_400_000)] == [
        "0ms", "200ms", "1s", "1.5s", "90s", "10m", "1d",
    ]  # fmt: skip


def test_the_defaults_are_the_guides_figures() -> None:
    defaults = {definition.name: definition.default for definition in DEFINITIONS}
    for name, value in {
        "session.degraded_after": "15s",
        "session.failed_after": "30s",
        "session.heartbeat_interval": "10s",
        "task.claim_timeout": "10m",
        "task.retry_base": "1s",
        "task.max_retries": "3",
        "request.retention": "15m",
        "metrics.window": "5m",
    }.items():
        assert defaults[name] == value
    assert list(defaults) == sorted(defaults)


def test_every_default_is_within_its_bounds_and_comes_back_as_written() -> None:
    for definition in DEFINITIONS:
        value = parse_setting(definition.name, definition.default)
        assert parse_setting(definition.name, format_setting(definition, value)) == value
        if isinstance(value, int | float):
            low = parse_value(definition.kind, definition.minimum)
            assert isinstance(low, int | float)
            assert low <= value
        assert definition.description.endswith(".")
    for low, high in ORDERED_PAIRS:
        assert {low, high} <= set(BY_NAME)


def test_numbers() -> None:
    assert parse_value(SettingKind.INTEGER, "-3") == -3
    assert parse_value(SettingKind.FLOAT, "1.5e-3") == 0.0015
    for kind, text in (
        (SettingKind.INTEGER, "1.5"),
        (SettingKind.INTEGER, "1_000"),
        (SettingKind.FLOAT, "nan"),
        (SettingKind.FLOAT, "inf"),
        (SettingKind.FLOAT, "0x1"),
    ):
        with pytest.raises(ValueError, match="number"):
            parse_value(kind, text)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ([("task.no_such", "1")], "settings[0].name"),
        ([("task.max_retries", "3"), ("task.claim_timeout", "soon")], "settings[1].value"),
        ([("task.max_retries", "-1")], "settings[0].value"),
        ([("task.max_retries", "2"), ("task.max_retries", "3")], "settings[1].name"),
        ([("session.degraded_after", "30s")], "settings[0].value"),
        ([("session.failed_after", "5s"), ("task.max_retries", "3")], "settings[0].value"),
    ],
)
def test_a_bad_set_flag_is_refused_before_any_log(
    changes: list[tuple[str, str]], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        Settings().changed(changes, version=0)
    assert error.value.violations[0].field == field


def test_a_good_set_flag() -> None:
    settings = Settings().changed(
        [("session.degraded_after", "1.5s"), ("session.failed_after", "3s")], version=0
    )
    assert settings.milliseconds("session.failed_after") == 3_000
    assert settings.integer("task.max_retries") == 3
    assert settings.number("task.max_retries") == 3.0
    assert settings.version == 0


def values(message: cluster_pb2.ClusterSettings) -> dict[str, str]:
    return {setting.name: setting.value for setting in message.settings}


def test_the_founding_gives_first_values_with_version_0() -> None:
    log = Log(("task.claim_timeout", "3s"))
    found = log.ask(get_settings={}).get_settings.settings
    assert found.version == 0
    assert values(found)["task.claim_timeout"] == "3s"
    assert [setting.name for setting in found.settings] == sorted(values(found))


def test_a_bad_founding_is_refused_and_nothing_is_founded() -> None:
    log = Log(found=False)
    bad = cluster_pb2.SettingChange(name="nope", value="1")
    refusal = log.refuse(found_cluster={"cluster_id": "c", "settings": [bad]})
    assert refusal.field == "settings[0].name"
    assert log.machine.cluster_id == ""


def update(*changes: tuple[str, str], **fields: int) -> dict[str, object]:
    body = [{"name": name, "value": value} for name, value in changes]
    return {"changes": body, **fields}


def test_an_update_is_all_or_none() -> None:
    log = Log()
    before = log.ask(get_settings={})
    refusal = log.refuse(update_settings=update(("task.max_retries", "5"), ("nope", "1")))
    assert refusal.field == "changes[1].name"
    assert log.ask(get_settings={}) == before
    after = log.do(update_settings=update(("task.max_retries", "5"))).settings
    assert (after.version, values(after)["task.max_retries"]) == (1, "5")
    assert log.refuse(update_settings={}).field == "changes"


def test_an_update_may_name_the_version_that_it_expects() -> None:
    log = Log()
    log.do(update_settings=update(("task.max_retries", "5"), expected_version=0))
    refusal = log.refuse(update_settings=update(("task.max_retries", "6"), expected_version=0))
    assert refusal.reason == "VERSION_MISMATCH"
    assert refusal.details[0].value == "1"


def test_shorter_session_times_reach_sessions_that_exist() -> None:
    log = Log()
    session = log.register("worker")
    log.do(update_settings=update(("session.degraded_after", "1s"), ("session.failed_after", "2s")))
    log.advance(1_000)
    assert log.session(session).health == 2
    log.advance(1_000)
    assert log.session(session).health == 3


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("none", "none"),
        ("keypress=60m", "keypress=1h"),
        ("keypress=1h,error=30d", "error=30d keypress=1h"),
        (" b=0ms  a=1.5s ", "a=1.5s b=0ms"),
    ],
)
def test_retentions_have_one_form(text: str, written: str) -> None:
    found = Settings().changed([("metrics.type_retention", text)], version=1)
    assert dict(found.texts())["metrics.type_retention"] == written
    again = Settings().changed([("metrics.type_retention", written)], version=1)
    assert again.retentions("metrics.type_retention") == found.retentions("metrics.type_retention")


@pytest.mark.parametrize("text", ["x", "a=1h a=2h", "a=366d", "=1h", "a=", "a b=1h", "a=-1s"])
def test_retentions_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"metrics\.type_retention"):
        Settings().changed([("metrics.type_retention", text)], version=1)


def test_types_with_a_retention_of_their_own_are_bounded() -> None:
    many = " ".join(f"type-{number}=1h" for number in range(MAX_RETENTIONS))
    assert len(parse_retentions(many)) == MAX_RETENTIONS
    with pytest.raises(ValueError, match="at most"):
        parse_retentions(f"{many} other=1h")
