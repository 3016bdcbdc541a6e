"""The models that this version knows, by their versions.

A file per model, named after the apps that it is for and a number; constants only, and never
changed once released: a new fit is a new file. A model that came with a later feature level can't
be chosen below it, so all peers of a cluster know the one that is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gaia_grpc.state.models import default_1, math_1
from gaia_grpc.state.models.form import Model

MODELS: Final[Mapping[str, Model]] = MappingProxyType(
    {each.version: each for each in (default_1.MODEL, math_1.MODEL)}
)
