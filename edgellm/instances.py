"""The boards a person owns: a name, a type and an address each, in boards.toml of the user's configuration.

    [kitchen]
    type = "rpi5"
    host = "pi@kitchen.local"
    port = 22

    [phone]
    type = "android-arm64"
    host = "adb:R58M123ABC"

The file may be edited by hand. It is replaced in one step, so that it is whole at any moment.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm.address import ADB, AdbAddress, parse_where
from edgellm.errors import BoardError
from edgellm.files import write_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Instance:
    """One board of one's own.

    host: "user@host" or "host", an IPv6 address without brackets; or "adb" or "adb:SERIAL", and port means nothing.
    """

    name: str
    type: str
    host: str
    port: int = 22

    @classmethod
    def at(cls, name: str, type: str, address: str, android: bool = False) -> Instance:
        """An instance at "user@host[:port]", "adb[:SERIAL]" or, for Android, "SERIAL". Raises UsageError."""
        where = parse_where(address, android)
        if isinstance(where, AdbAddress):
            return cls(name, type, str(where))
        return cls(name, type, f"{where.user}@{where.host}" if where.user else where.host, where.port or 22)

    @property
    def address(self) -> str:
        """What `edgellm boards add` was given."""
        return self.host if self.port == 22 else f"{self.host}:{self.port}"


def instances_path() -> Path:
    """Where instances are kept; XDG_CONFIG_HOME is honoured."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "edgellm" / "boards.toml"


def read_instances() -> dict[str, Instance]:
    """Every instance by name. Raises BoardError if the file is not what this module writes."""
    path = instances_path()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BoardError(f"{path}: not valid TOML: {error}; mend or delete it") from error
    found = {}
    for name, table in document.items():
        if not isinstance(table, dict) or not {"type", "host"} <= set(table) <= {"type", "host", "port"}:
            raise BoardError(f"{path}: {name}: must be a table with type, host and perhaps port")
        if not (isinstance(table["type"], str) and isinstance(table["host"], str)):
            raise BoardError(f"{path}: {name}: type and host must be texts")
        port = table.get("port", 22)
        if type(port) is not int or not 0 < port < 65536:
            raise BoardError(f"{path}: {name}.port: must be a whole number from 1 to 65535")
        found[name] = Instance(name, table["type"], table["host"], port)
    return found


def add_instance(instance: Instance, replace: bool = False) -> None:
    """Record an instance. Raises BoardError if its name cannot be one, or is taken and `replace` is false."""
    if not _NAME.fullmatch(instance.name):
        raise BoardError(f"{instance.name!r} cannot be a board's name; use letters, digits, - and _")
    instances = read_instances()
    if instance.name in instances and not replace:
        known = instances[instance.name]
        raise BoardError(f"{instance.name} is already {known.type} at {known.address}; pass --replace, or another name")
    _write({**instances, instance.name: instance})


def remove_instance(name: str) -> Instance:
    """Forget an instance and return what it was. Raises BoardError if there is none of that name."""
    instances = read_instances()
    if name not in instances:
        raise BoardError(f"there is no board {name!r} of yours; you have: {', '.join(instances) or 'none'}")
    removed = instances.pop(name)
    _write(instances)
    return removed


def _write(instances: Mapping[str, Instance]) -> None:
    tables = [
        f"[{name}]\ntype = {json.dumps(entry.type)}\nhost = {json.dumps(entry.host)}\n"
        + ("" if entry.host.partition(":")[0] == ADB else f"port = {entry.port}\n")
        for name, entry in sorted(instances.items())
    ]
    write_atomically(instances_path(), "\n".join(tables).encode())
