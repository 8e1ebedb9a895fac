"""List the families of models that can be compiled, or say whether one can.

A family is what config.json calls an architecture. All run in the same schemes, on the same boards.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crosscompile import models
from crosscompile.checkpoint import read_config
from crosscompile.errors import ConfigError

_EPILOG = """\
examples:
  edgellm models                    every family, and what is special about it
  edgellm models ./MyModel          whether this one can be compiled, from its config.json alone
  edgellm models --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a checkpoint directory, or its config.json")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    if args.model is not None:
        return _examine(Path(args.model), args.json)
    if args.json:
        print(json.dumps([{"architecture": name, **_shown(family)} for name, family in models.FAMILIES.items()]))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("architecture", "models", "beyond Llama"):
        table.add_column(title, overflow="fold")
    for name, family in models.FAMILIES.items():
        table.add_row(name, family.title, family.special)
    console = Console()
    console.print(table)
    plugins = models.installed()
    if plugins:
        console.print(f"\nfrom installed packages: {', '.join(plugins)}")
    return 0


def _shown(family: models.Family) -> dict[str, str]:
    fields = asdict(family)
    return {"models": fields["title"], "special": fields["special"]}


def _examine(path: Path, as_json: bool) -> int:
    """0: it can be compiled. What stands against it is an error that names the field."""
    config: dict[str, Any] = read_config(path.parent if path.name == "config.json" else path)
    name = models.name_of(config)
    if name in models.installed():
        text, design = "from an installed package", None
    elif name in models.FAMILIES:
        text, design = models.FAMILIES[name].title, models.FAMILIES[name].design(config)
    else:
        error: ConfigError = models.unknown(name, config)
        raise error
    found = {"architecture": name, "models": text}
    if design is not None:
        numbers = {
            "layers": len(design.layers),
            "hidden": design.hidden,
            "vocab": design.vocab,
            "context": design.context,
        }
        found.update({key: str(value) for key, value in numbers.items()})
    if as_json:
        print(json.dumps(found))
    else:
        print(", ".join(f"{key} {value}" for key, value in found.items()))
    return 0
