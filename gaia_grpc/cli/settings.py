"""`gaia settings`: the replicated settings."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from gaia_grpc.cli.options import DEFAULT_CLUSTER, ClusterOption, JsonOption, parse_pairs
from gaia_grpc.cli.output import ListByDefault, print_json, print_table
from gaia_grpc.errors import NotFoundError

UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

app = typer.Typer(help="Replicated settings.", cls=ListByDefault, rich_markup_mode=None)


@app.command("list")
def list_settings(
    cluster: ClusterOption = DEFAULT_CLUSTER, json_output: JsonOption = False
) -> None:
    """Show every setting with its value, and its default where it was changed."""
    from gaia.cluster.v1 import cluster_pb2

    from gaia_grpc.cli.ask import ask

    found = ask(
        cluster, lambda peer: peer.cluster.GetSettings, cluster_pb2.GetSettingsRequest()
    ).settings
    if json_output:
        print_json(found)
        return
    print_table(
        ("SETTING", "VALUE", "DEFAULT", "WHAT IT DOES"),
        (
            (
                item.name,
                item.value,
                _default_text(item.value, item.default_value),
                item.description,
            )
            for item in found.settings
        ),
        "no settings",
    )


def _default_text(value: str, default: str) -> str:
    """The default where the value differs from it; `60s` is what `1m` is."""
    return "" if _measure(value) == _measure(default) else default


def _measure(text: str) -> float | str:
    """What two texts of one value share: `60s` and `1m`, `0` and `0.0`."""
    length_ms = _length_ms(text)
    if length_ms is not None:
        return length_ms
    return float(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else text


def _length_ms(text: str) -> float | None:
    """A duration in milliseconds; None where the text is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    return None if found is None else float(found[1]) * UNITS_MS[found[2]]


@app.command("get")
def get_setting(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Print the value of one setting."""
    from gaia.cluster.v1 import cluster_pb2

    from gaia_grpc.cli.ask import ask

    found = ask(
        cluster, lambda peer: peer.cluster.GetSettings, cluster_pb2.GetSettingsRequest()
    ).settings
    setting = next((item for item in found.settings if item.name == name), None)
    if setting is None:
        raise NotFoundError(f"no setting {name}; `gaia settings` lists them")
    if json_output:
        print_json(setting)
    else:
        print(setting.value)


@app.command("set")
def set_settings(
    changes: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...")],
    cluster: ClusterOption = DEFAULT_CLUSTER,
    json_output: JsonOption = False,
) -> None:
    """Change settings through the log: all of them or, on an error, none."""
    from gaia.cluster.v1 import cluster_pb2

    from gaia_grpc.cli.ask import ask

    pairs = parse_pairs("set", changes)
    request = cluster_pb2.UpdateSettingsRequest(
        changes=[cluster_pb2.SettingChange(name=name, value=value) for name, value in pairs]
    )
    answer = ask(cluster, lambda peer: peer.cluster.UpdateSettings, request)
    if json_output:
        print_json(answer)
        return
    values = {item.name: item.value for item in answer.settings.settings}
    for name, _ in pairs:
        print(f"{name}={values.get(name, '')}")
