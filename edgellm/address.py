"""Where a board is reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import UsageError


@dataclass(frozen=True)
class SshAddress:
    """One SSH server.

    user, port        None: from ~/.ssh/config, else the local user and 22
    key_path          private key to use alone; None: ~/.ssh/config, the agent, ~/.ssh/id_*, then a password
    known_hosts_path  host keys of this server alone; None: the user's and the system's known_hosts
    """

    host: str
    port: int | None = None
    user: str | None = None
    key_path: Path | None = None
    known_hosts_path: Path | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port not in (None, 22) else ""
        return f"{user}{self.host}{port}"


def parse_address(text: str) -> SshAddress:
    """Reads [user@]host[:port] or [user@][v6]:port. Raises UsageError."""
    user, at, rest = text.rpartition("@")
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        port = tail.removeprefix(":") if bracket and tail.startswith(":") else ""
        valid = bool(bracket) and (not tail or bool(port))
    elif rest.count(":") > 1:  # a bare IPv6 address
        host, port, valid = rest, "", True
    else:
        host, colon, port = rest.partition(":")
        valid = bool(port) or not colon
    good_port = not port or (port.isascii() and port.isdigit() and 0 < int(port) < 65536)
    # A leading '-' would be read as an option by programs such as ssh; no host or user starts with one.
    if not (valid and host and good_port) or (at and not user) or host.startswith("-") or user.startswith("-"):
        raise UsageError(f"'{text}' is not an SSH address; write user@host or user@host:port")
    return SshAddress(host, int(port) if port else None, user or None)
