"""Architectures: a table from config.json's `architectures` entry to how the network is built."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from crosscompile.errors import ConfigError
from crosscompile.models.architecture import Architecture
from crosscompile.models.llama import LLAMA

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
}
"""Built in; more come from installed packages through the entry-point group `edgellm.architectures`."""

ENTRY_POINTS = "edgellm.architectures"


def architecture_for(config: Mapping[str, Any]) -> tuple[str, Architecture]:
    """Name and table entry of a checkpoint's architecture. ConfigError names the nearest one that is known."""
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ConfigError(f"config.json: 'architectures' must name exactly one architecture, not {names!r}")
    name = names[0]
    known = dict(ARCHITECTURES)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name and name not in known:
            loaded = point.load()
            if not isinstance(loaded, Architecture):
                raise ConfigError(
                    f"entry point {ENTRY_POINTS}:{name} gives a {type(loaded).__name__}, not Architecture"
                )
            known[name] = loaded
    if name in known:
        return name, known[name]
    near = difflib.get_close_matches(name, known, 1, 0.0)[0]
    raise ConfigError(
        f"config.json: architecture {name!r} is not supported; supported are {', '.join(known)}. The nearest is "
        f"{near}: if the network is the same, change 'architectures', else add it through "
        f"the entry point {ENTRY_POINTS}"
    )
