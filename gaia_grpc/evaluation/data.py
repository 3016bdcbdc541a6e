"""The research logs: where they are, and their rows."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from gaia_grpc.errors import ConfigError

VARIABLE = "GAIA_DATA"
DEFAULT_FOLDER = "../shared/data"
COGNITIVE_TUTOR = "cognitive_tutor_algebra_2006_07_sample.tsv.gz"
ASSISTMENTS = "assistments_2009_10_table.csv.gz"
SWELL = "swell_kw_keyboard_frustration_per_minute.csv.gz"
FREIHAUT = "freihaut_keyboard_features.csv.gz"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"


def data_folder(option: str = "") -> Path:
    """The folder of the logs; raises `ConfigError` where one of them is not there."""
    folder = Path(option or os.environ.get(VARIABLE, "") or DEFAULT_FOLDER)
    absent = [
        name
        for name in (COGNITIVE_TUTOR, ASSISTMENTS, SWELL, FREIHAUT)
        if not (folder / name).is_file()
    ]
    if absent:
        raise ConfigError(
            f"the research logs are not in {folder} (absent: {', '.join(absent)});"
            f" name their folder with --data or {VARIABLE}"
        )
    return folder


def rows(path: Path) -> Iterator[Mapping[str, str]]:
    """The rows of a table."""
    delimiter = "\t" if ".tsv" in path.name else ","
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        yield from csv.DictReader(text, delimiter=delimiter, restval="")


def time_ms(text: str) -> int | None:
    """A time of the logs in milliseconds since 1970; None where there is none."""
    try:
        moment = datetime.strptime(text, TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None
    return round(moment.timestamp() * 1_000)


def count(text: str) -> int:
    """A whole number; 0 where there is none."""
    return int(float(text)) if text else 0
