"""Bounds of a classroom that ingress checks first and apply checks again."""

from __future__ import annotations

from typing import Final

MAX_TEACHERS: Final = 1_000
MAX_STUDENTS: Final = 10_000
