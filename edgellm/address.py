"""Where a board is reached."""

from __future__ import annotations

import re
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


@dataclass(frozen=True)
class AdbAddress:
    """A device that adb reaches.

    serial   as `adb devices` lists it; None: the one ANDROID_SERIAL names, or the only one there is
    program  adb itself; None: the one on PATH or below ANDROID_HOME
    server   where its server listens, as ADB_SERVER_SOCKET says it; None: where it does for everybody
    """

    serial: str | None = None
    program: Path | None = None
    server: str | None = None

    def __str__(self) -> str:
        return f"{ADB}:{self.serial}" if self.serial else ADB


ADB = "adb"
"""What the address of a device begins with: `adb` for the only one, `adb:SERIAL` for one of several."""

_SERIAL = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:%\[\]-]{0,127}")


def parse_where(text: str, android: bool = False) -> SshAddress | AdbAddress:
    """Reads adb, adb:SERIAL or an SSH address. Raises UsageError.

    android: the board runs Android, where a text without user@ is a serial too.
    """
    scheme, colon, serial = text.partition(":")
    if scheme == ADB and not serial:
        return AdbAddress()
    if scheme != ADB or not colon:
        if not android or "@" in text:
            return parse_address(text)
        serial = text
    if not _SERIAL.fullmatch(serial):
        raise UsageError(f"'{text}' names no device; write adb:SERIAL, as `adb devices` lists it")
    return AdbAddress(serial)


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
