"""`python -m gaia_grpc` is `gaia`."""

from __future__ import annotations

import sys

from gaia_grpc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
