"""The command line: `gaia ...`."""
