"""GAIA: the replicated backend of a classroom (sessions, tasks, metrics, struggle alerts)."""

__version__ = "0.1.0"
