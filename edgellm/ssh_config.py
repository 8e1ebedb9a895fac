"""~/.ssh/config as it applies to one host, read the way OpenSSH reads it (Include, ProxyJump, HostKeyAlias, …)."""

from __future__ import annotations

import getpass
import glob
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import paramiko

from edgellm.address import SshAddress, parse_address
from edgellm.errors import UsageError

_INCLUDE_DEPTH = 16  # OpenSSH's own limit


@dataclass(frozen=True)
class Route:
    """Everything needed to connect to one server.

    host, port, user   of the server itself
    key_name           what its key is filed under in known_hosts
    key_paths          private keys named by the configuration, in order
    only_these_keys    IdentitiesOnly, or one key given: neither agent nor ~/.ssh/id_*
    jumps              servers to go through, first hop first
    proxy_command      a program whose standard input and output are the connection
    known_hosts        files to look the host key up in; the first one is where a new key is added
    """

    host: str
    port: int
    user: str
    key_name: str
    key_paths: tuple[Path, ...]
    only_these_keys: bool
    jumps: tuple[SshAddress, ...]
    proxy_command: str | None
    known_hosts: tuple[Path, ...]


def route_to(address: SshAddress, config_path: Path | None = None) -> Route:
    """Looks `address` up in the user's SSH configuration; what the address says itself wins.

    config_path: another file than ~/.ssh/config. Raises UsageError if the file cannot be understood.
    """
    ssh = Path.home() / ".ssh"
    config = _read(config_path or ssh / "config")
    try:
        options = dict[str, Any](config.lookup(address.host))
    except (paramiko.ConfigParseError, paramiko.CouldNotCanonicalize, ImportError, ValueError) as error:
        raise UsageError(f"{config_path or ssh / 'config'}: cannot apply it to {address.host}: {error}") from error
    if address.key_path is not None:  # a virtual board: nothing of the user's own keys or hosts is touched
        options = {"hostname": address.host}
    port = address.port or _port(options.get("port", "22"), address.host)
    host = str(options.get("hostname", address.host))
    jumps = options.get("proxyjump") or "none"
    listed = [Path(text).expanduser() for text in str(options.get("userknownhostsfile", "")).split()]
    user_files = listed or [ssh / "known_hosts", ssh / "known_hosts2"]
    alias = options.get("hostkeyalias")
    route = Route(
        host=host,
        port=port,
        user=address.user or str(options.get("user", "")) or getpass.getuser(),
        key_name=str(alias) if alias else host if port == 22 else f"[{host}]:{port}",
        key_paths=tuple(Path(text).expanduser() for text in options.get("identityfile", [])),
        only_these_keys=str(options.get("identitiesonly", "no")).lower() == "yes",
        jumps=() if jumps.lower() == "none" else tuple(parse_address(hop) for hop in jumps.split(",")),
        proxy_command=options.get("proxycommand"),
        known_hosts=(*user_files, Path("/etc/ssh/ssh_known_hosts")),
    )
    if address.key_path is not None:
        route = replace(route, key_paths=(address.key_path,), only_these_keys=True)
    if address.known_hosts_path is not None:
        route = replace(route, known_hosts=(address.known_hosts_path,))
    return route


def _port(text: str, host: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UsageError(f"~/.ssh/config: Port {text} for {host} is not a port number")
    return int(text)


def _read(path: Path) -> paramiko.SSHConfig:
    try:
        return paramiko.SSHConfig.from_text("\n".join(_lines(path, 0)))
    except paramiko.ConfigParseError as error:
        raise UsageError(f"{path}: {error}; correct the line") from error


def _lines(path: Path, depth: int) -> list[str]:
    """The file's lines with Include replaced by what it names, relative to ~/.ssh as OpenSSH has it."""
    if not path.is_file():
        return []
    if depth > _INCLUDE_DEPTH:
        raise UsageError(f"{path}: Include is nested more than {_INCLUDE_DEPTH} deep; break the circle")
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.strip().split()
        if not words or words[0].lower() != "include":
            lines.append(line)
            continue
        for word in words[1:]:
            pattern = Path(word.strip('"')).expanduser()
            if not pattern.is_absolute():
                pattern = Path.home() / ".ssh" / pattern
            for included in sorted(glob.glob(str(pattern))):
                lines += _lines(Path(included), depth + 1)
    return lines
