"""Boards from an inventory of Ansible's, read by Ansible itself; and one of ours written for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crosscompile.target import DEVICES
from edgellm.ansible_process import run_ansible
from edgellm.errors import BoardError
from edgellm.fleet import Member
from edgellm.terminal import one_line

DEVICE, SERVICE = "edgellm_device", "edgellm_service"
TEXTS = ("edgellm_board", "edgellm_host", "edgellm_model", "edgellm_scheme", "edgellm_name", DEVICE)
"""What a host's variables may say to edgellm. edgellm_board is the type of board; the others are as in a TOML file."""


def members_of(path: Path) -> tuple[Member, ...]:
    """Every host of an inventory, in its order. Raises BoardError if Ansible cannot read it, or a variable is wrong."""
    status, said, errors = run_ansible("inventory", "-i", str(path), "--list")
    if status != 0:
        raise BoardError(f"{path}: Ansible cannot read this inventory: {one_line(errors) or f'exit code {status}'}")
    try:
        document = json.loads(said)
        return _members(document, path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BoardError(f"{path}: ansible-inventory said something unexpected: {one_line(str(error))}") from error


def _members(document: Mapping[str, Any], path: Path) -> tuple[Member, ...]:
    """Ansible has merged every host's variables already; what is left is which groups a host is in, and the order."""
    groups: dict[str, list[str]] = {}

    def visit(group: str, outer: tuple[str, ...]) -> None:
        if group in outer:
            raise BoardError(f"{path}: group {group}: is a child of itself")
        table = document.get(group, {})
        for host in table.get("hosts", []):
            there = groups.setdefault(host, [])
            there.extend(name for name in (*outer, group) if name not in (*there, "all", "ungrouped"))
        for child in table.get("children", []):
            visit(child, (*outer, group))

    visit("all", ())
    variables = document.get("_meta", {}).get("hostvars", {})
    members = []
    for host, named in groups.items():
        found = variables.get(host, {})
        kind, address, model, scheme, name, device = (_text(found.get(key), f"{path}: {host}: {key}") for key in TEXTS)
        service = found.get(SERVICE, False)
        if not isinstance(service, bool):
            raise BoardError(f"{path}: {host}: {SERVICE}: must be true or false")
        if device is not None and device not in DEVICES:
            raise BoardError(f"{path}: {host}: {DEVICE}: must be one of {', '.join(DEVICES)}")
        members.append(Member(host, kind, address, tuple(named), model, scheme, name, service, found, device))
    if not members:
        raise BoardError(f"{path}: this inventory has no hosts; add some")
    return tuple(members)


def _text(value: Any, where: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise BoardError(f"{where}: must be a text that is not empty")
    if isinstance(value, str) and "{{" in value:
        raise BoardError(f"{where}: has a template, which edgellm does not evaluate; write out what it stands for")
    return value


def written(members: Iterable[Member]) -> dict[str, Any]:
    """Boards of a TOML file as an inventory for Ansible (its YAML form, of which JSON is a part)."""
    children: dict[str, Any] = {}
    for member in members:
        own = {**member.vars, "edgellm_board": member.type}
        if member.host is not None:
            own["edgellm_host"] = member.host
        hosts = {key: unsafe(value) for key, value in own.items()}
        for group in member.groups:
            children.setdefault(group, {"hosts": {}})["hosts"][member.name] = hosts
    return {"all": {"children": children}}


def unsafe(value: Any) -> Any:
    """A value in which Ansible will see no template, whatever it contains: a file of boards must not run programs."""
    if isinstance(value, str):
        return {"__ansible_unsafe": value} if "{" in value else value
    if isinstance(value, list):
        return [unsafe(entry) for entry in value]
    if isinstance(value, dict):
        return {key: unsafe(entry) for key, entry in value.items()}
    return value
