"""`python -m gaia_grpc.evaluation fit|evaluate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gaia_grpc.errors import GaiaError
from gaia_grpc.evaluation.data import DEFAULT_FOLDER, VARIABLE, data_folder

REPORT_FOLDER = "build/evaluation"
FAILED, NO_DATA = 1, 2


def main() -> int:
    """0: done, and every target met; 1: a target is missed; 2: no data, or nothing to work with."""
    parser = argparse.ArgumentParser(prog="gaia_grpc.evaluation", description=__doc__)
    parser.add_argument("command", choices=("fit", "evaluate"))
    parser.add_argument(
        "--data", default="", help=f"folder of the logs; default {VARIABLE} or {DEFAULT_FOLDER}"
    )
    parser.add_argument("--report", default=REPORT_FOLDER, help="folder of the report")
    parser.add_argument("--replace", action="store_true", help="fit: write over the model")
    parser.add_argument(
        "--no-cluster", action="store_true", help="evaluate: no replay through peers; never passes"
    )
    chosen = parser.parse_args()
    try:
        data = data_folder(chosen.data)
        try:
            from gaia_grpc.evaluation import fit, judge
        except ModuleNotFoundError as error:
            print(f"error: {error}; install the extra `evaluate`", file=sys.stderr)
            return NO_DATA
        if chosen.command == "fit":
            return fit.run(data, replace=chosen.replace)
        return judge.run(data, Path(chosen.report), with_cluster=not chosen.no_cluster)
    except GaiaError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_DATA


if __name__ == "__main__":
    sys.exit(main())
