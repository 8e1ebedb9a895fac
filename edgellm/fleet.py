"""A fleet: many boards in groups, and how a model is rolled out to them. A TOML file, or an inventory of Ansible's.

    [rollout]                            # all of it optional; the command line has the last word
    waves = [1, "10%", "25%"]            # the last one is repeated
    max_failures = "10%"                 # of the boards that are rolled out to

    [groups.kitchen]
    type = "rpi5"
    model = "./Assistant"                # below: what `edgellm deploy --fleet` sends if it is given no MODEL
    scheme = "w8a8"
    device = "both"                      # as `edgellm deploy --device`
    name = "assistant"
    service = true
    vars = { room = "kitchen" }          # for playbooks of one's own

    [groups.kitchen.boards]
    oven = "pi@oven.local"
    fridge = { host = "pi@fridge.local:2222", type = "rpi4" }

    [groups.hall]
    type = "rpi5"
    boards = ["hall-left", "hall-right"]   # as `edgellm boards` knows them

Whatever a group says counts for its boards, and a board may say it otherwise for itself. Groups are rolled out to in
the order of the file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosscompile.models.schemes import SCHEMES
from crosscompile.target import DEVICES
from edgellm.address import parse_where
from edgellm.boards import load_board
from edgellm.errors import BoardError, UsageError
from edgellm.instances import Instance, read_instances
from edgellm.terminal import one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WAVES: tuple[str, ...] = ("1", "10%", "25%")
MAX_FAILURES = "10%"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_SHARE = re.compile(r"(\d{1,6})(%?)")
_SAID = ("type", "model", "scheme", "device", "name", "service", "vars")
"""What a group and a board may say."""
_OWN_VARS = ("ansible_", "edgellm_")
_BYTES = 4 << 20


@dataclass(frozen=True)
class Member:
    """One board of a fleet.

    type      of boards/; None where an Ansible inventory does not say (then only a bundle can be sent)
    host      its address as edgellm writes it; None: virtual, or Ansible knows
    model     what is deployed to it by default; scheme, name, service and device likewise
    """

    name: str
    type: str | None = None
    host: str | None = None
    groups: tuple[str, ...] = ()
    model: str | None = None
    scheme: str | None = None
    model_name: str | None = None
    service: bool = False
    vars: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None


@dataclass(frozen=True)
class Fleet:
    """path: the file, or folder, it was read from; is_ansible: whether that is an inventory of Ansible's.

    waves, max_failures: what it says of rollouts; None where it says nothing.
    """

    path: Path
    members: tuple[Member, ...]
    is_ansible: bool = False
    waves: tuple[str, ...] | None = None
    max_failures: str | None = None

    def selected(self, names: Sequence[str]) -> tuple[Member, ...]:
        """The boards of these groups, or with these names; all of them if there are no names. Raises BoardError."""
        known = {member.name for member in self.members} | {g for member in self.members for g in member.groups}
        for name in names:
            if name not in known:
                raise BoardError(f"{self.path}: there is no group or board {name!r}; it has {', '.join(sorted(known))}")
        wanted = set(names)
        return tuple(m for m in self.members if not wanted or m.name in wanted or wanted & set(m.groups))


def read(path: str | Path) -> Fleet:
    """Reads a fleet. Raises BoardError, with file, field and remedy."""
    path = Path(path)
    if not path.exists():
        raise BoardError(f"{path}: there is no such fleet; `edgellm deploy --help` says what one looks like")
    if path.suffix != ".toml":
        from edgellm.ansible_inventory import members_of  # starts Ansible

        return Fleet(path, members_of(path), is_ansible=True)
    try:
        raw = path.read_bytes()
        if len(raw) > _BYTES:
            raise BoardError(f"{path}: has {len(raw)} bytes; a fleet's file has at most {_BYTES}")
        document = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise BoardError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BoardError(f"{path}: not valid TOML: {one_line(str(error))}") from error
    return _Reader(path).fleet(document)


def share_of(text: str, n_boards: int) -> int:
    """How many boards "3" or "10%" of n_boards are; rounded down. Raises UsageError."""
    found = _SHARE.fullmatch(text)
    if found is None or (found[2] and int(found[1]) > 100):
        raise UsageError(f"'{text}' is no number of boards; write 3 or 10%")
    return int(found[1]) * n_boards // 100 if found[2] else int(found[1])


def wave_sizes(waves: Sequence[str], n_boards: int) -> list[int]:
    """The size of each wave, as Ansible's `serial` counts them: at least one board each, the last one repeated."""
    sizes: list[int] = []
    while sum(sizes) < n_boards:
        wanted = max(1, share_of(waves[min(len(sizes), len(waves) - 1)], n_boards))
        sizes.append(min(wanted, n_boards - sum(sizes)))
    return sizes


class _Reader:
    """Checks one TOML file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own: dict[str, Instance] | None = None

    def fleet(self, document: Mapping[str, Any]) -> Fleet:
        self._known(document, "", {"rollout", "groups"})
        rollout = self._table(document.get("rollout", {}), "rollout")
        self._known(rollout, "rollout.", {"waves", "max_failures"})
        groups = self._table(document.get("groups", {}), "groups")
        members: dict[str, Member] = {}
        for name, table in groups.items():
            self._check_name(name, f"groups.{one_line(name, 70)}")
            for member in self._group(name, self._table(table, f"groups.{name}")):
                if member.name in members:
                    there = members[member.name].groups[0]
                    self._wrong(f"groups.{name}.boards.{member.name}", f"is in groups.{there} already; name it once")
                members[member.name] = member
        if not members:
            raise BoardError(f"{self._path}: groups: it has no boards; add [groups.NAME.boards] with name = address")
        if both := sorted(set(groups) & set(members)):
            self._wrong(f"groups.{both[0]}", "is the name of a board, too; rename one of them")
        waves = max_failures = None
        if "waves" in rollout:
            listed = rollout["waves"]
            if not isinstance(listed, list) or not listed:
                self._wrong("rollout.waves", 'must be a list such as [1, "10%", "25%"]')
            waves = tuple(self._share(entry, f"rollout.waves[{i}]") for i, entry in enumerate(listed))
        if "max_failures" in rollout:
            max_failures = self._share(rollout["max_failures"], "rollout.max_failures")
        return Fleet(self._path, tuple(members.values()), False, waves, max_failures)

    def _group(self, name: str, table: Mapping[str, Any]) -> list[Member]:
        where = f"groups.{name}"
        self._known(table, f"{where}.", {*_SAID, "boards"})
        boards = table.get("boards")
        if isinstance(boards, list):
            entries: dict[str, Any] = {}
            for i, entry in enumerate(boards):
                if not isinstance(entry, str):
                    self._wrong(f"{where}.boards[{i}]", "must be the name of a board that `edgellm boards` lists")
                entries[entry] = {}
        else:
            entries = dict(self._table(boards, f"{where}.boards") if boards is not None else {})
        return [self._member(name, table, board, entry) for board, entry in entries.items()]

    def _member(self, group: str, defaults: Mapping[str, Any], name: str, entry: Any) -> Member:
        where = f"groups.{group}.boards.{one_line(name, 70)}"
        self._check_name(name, where)
        own = self._table({"host": entry} if isinstance(entry, str) else entry, where)
        self._known(own, f"{where}.", {*_SAID, "host"})

        def text(key: str) -> str | None:
            value, at = (own[key], where) if key in own else (defaults.get(key), f"groups.{group}")
            if value is not None and (not isinstance(value, str) or not value or len(value) > 1000):
                self._wrong(f"{at}.{key}", "must be a text that is not empty")
            return value

        service = own.get("service", defaults.get("service", False))
        if not isinstance(service, bool):
            self._wrong(f"{where if 'service' in own else f'groups.{group}'}.service", "must be true or false")
        kind, host, scheme, device = text("type"), text("host"), text("scheme"), text("device")
        if host is None and (known := self._instance(name)) is not None:
            kind, host = kind or known.type, known.address
        if kind is None:
            self._wrong(f"{where}.type", "is missing; `edgellm boards` lists the types of boards")
        assert kind is not None
        try:
            board = load_board(kind)
        except BoardError as error:
            raise BoardError(f"{self._path}: {where}.type: {error}") from error
        if host is not None:
            try:
                parse_where(host, board.os == "android")
            except UsageError as error:
                raise BoardError(f"{self._path}: {where}.host: {one_line(str(error))}") from error
        elif not board.virtual:
            remedy = f'write {name} = "user@host", or name it once: edgellm boards add {name} {kind} user@host'
            self._wrong(f"{where}.host", f"is missing; {remedy}")
        for key, value, known_values in (("scheme", scheme, SCHEMES), ("device", device, DEVICES)):
            if value is not None and value not in known_values:
                self._wrong(f"{where}.{key}", f"must be one of {', '.join(known_values)}")
        variables = {**self._vars(defaults, f"groups.{group}"), **self._vars(own, where)}
        model, called = self._model(text("model")), text("name")
        return Member(name, kind, host, (group,), model, scheme, called, service, variables, device)

    def _model(self, text: str | None) -> str | None:
        """A model's path is meant from the file's folder; a Hub id is none."""
        if text is None or not (text.startswith((".", "/", "~")) or (self._path.parent / text).exists()):
            return text
        return str(self._path.parent / Path(text).expanduser())

    def _instance(self, name: str) -> Instance | None:
        if self._own is None:
            self._own = read_instances()
        return self._own.get(name)

    def _vars(self, table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        found = self._table(table.get("vars", {}), f"{where}.vars")
        for key, value in found.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) or key.startswith(_OWN_VARS):
                self._wrong(f"{where}.vars.{one_line(key, 70)}", "cannot be a variable of yours; use letters and _")
            if not isinstance(value, (str, int, float, bool, list, dict)):
                self._wrong(f"{where}.vars.{key}", "must be a text, a number, true or false, a list or a table")
        return found

    def _share(self, value: Any, where: str) -> str:
        text = str(value) if type(value) in (int, str) else ""
        try:
            share_of(text, 100)
        except UsageError:
            self._wrong(where, 'must be a number of boards or a share of them: 3 or "10%"')
        return text

    def _check_name(self, name: str, where: str) -> None:
        if not _NAME.fullmatch(name) or name in ("all", "ungrouped", "localhost"):
            self._wrong(where, "cannot be a name; use letters, digits, dot, - and _")

    def _table(self, value: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self._wrong(where, f"must be a table, not {type(value).__name__}")
        table: Mapping[str, Any] = value
        return table

    def _known(self, table: Mapping[str, Any], prefix: str, known: set[str]) -> None:
        for key in table:
            if key not in known:
                self._wrong(f"{prefix}{one_line(key, 70)}", f"unknown; known here: {', '.join(sorted(known))}")

    def _wrong(self, where: str, why: str) -> None:
        raise BoardError(f"{self._path}: {where}: {why}")
