"""From a route to a logged-in SSH transport: connect, check the host key, authenticate.

Host keys are checked as ssh does it: one that differs from known_hosts is refused; an unknown one is shown and, on
a terminal, recorded if the user agrees. Keys are tried in ssh's order: agent and configured files, then ~/.ssh/id_*,
then a password.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import UnknownKeyType

from edgellm.errors import HostKeyError, LoginError, UnreachableError
from edgellm.ssh_config import Route, route_to
from edgellm.terminal import one_line

CONNECT_S = 10.0
HANDSHAKE_S = 30.0
_PASSWORD_TRIES = 3
_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""Half the work of CTR with a separate MAC, on both ends; paramiko has them last."""

Ask = Callable[[str], str]
"""Shows a question and returns the answer."""


class Login:
    """Opens connections and keeps what has to be closed with them (hops, proxy programs).

    name: what messages call the board. ask, ask_hidden: how to ask for yes/no and for a password; None: nobody is
    there, so that a question is an error.
    """

    def __init__(self, name: str, ask: Ask | None, ask_hidden: Ask | None, config_path: Path | None = None) -> None:
        self._name, self._ask, self._ask_hidden, self._config_path = name, ask, ask_hidden, config_path
        self._opened: list[paramiko.Transport] = []
        self._proxy: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """Closes every connection, the last hop first."""
        while self._opened:
            self._opened.pop().close()
        if self._proxy is not None:
            self._proxy.terminate()
            self._proxy.wait()
            self._proxy = None

    def open(self, route: Route) -> paramiko.Transport:
        """Connects and logs in. Raises UnreachableError, HostKeyError or LoginError."""
        via: paramiko.Transport | None = None
        for hop in route.jumps:
            there = route_to(hop, self._config_path)
            via = self._session(there, via)
        return self._session(route, via)

    # ---- the pipe ----------------------------------------------------------------------------------------------

    def _pipe(self, route: Route, via: paramiko.Transport | None) -> Any:
        """A socket to the server's SSH port: through another server, out of a program, or direct."""
        if via is not None:
            try:
                there = (route.host, route.port)
                return via.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=HANDSHAKE_S)
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise UnreachableError(
                    f"{self._name}: the jump host cannot reach {route.host} port {route.port}: {one_line(str(error))}"
                ) from error
        if route.proxy_command:
            ours, theirs = socket.socketpair()
            with theirs:
                command = ["sh", "-c", "exec " + route.proxy_command]
                self._proxy = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=theirs.fileno(), start_new_session=True
                )
            return ours
        return self._tcp(route)

    def _tcp(self, route: Route) -> socket.socket:
        where = f"{route.host} port {route.port}"
        try:
            return socket.create_connection((route.host, route.port), timeout=CONNECT_S)
        except socket.gaierror as error:
            raise UnreachableError(
                f"{self._name}: the name '{route.host}' is not known; check its spelling, or use the IP address"
            ) from error
        except TimeoutError as error:
            raise UnreachableError(
                f"{self._name}: no answer from {where} within {CONNECT_S:.0f} s; is the board on and on this network?"
            ) from error
        except ConnectionRefusedError as error:
            raise UnreachableError(
                f"{self._name}: {where} refuses connections; is SSH enabled on the board, and the port right?"
            ) from error
        except OSError as error:
            raise UnreachableError(
                f"{self._name}: cannot reach {where}: {error.strerror or error}; check the network"
            ) from error

    # ---- the session -------------------------------------------------------------------------------------------

    def _session(self, route: Route, via: paramiko.Transport | None) -> paramiko.Transport:
        known = _known_keys(route)
        pipe = self._pipe(route, via)
        try:
            transport = paramiko.Transport(pipe)
            self._opened.append(transport)
            transport.banner_timeout = transport.auth_timeout = HANDSHAKE_S
            offered = transport.get_security_options()
            offered.ciphers = _first(offered.ciphers, _FAST_CIPHERS)
            # Ask for a key type that we have on file, or a server with several keys would look changed.
            types = ("rsa-sha2-512", "rsa-sha2-256") if "ssh-rsa" in known else ()
            offered.key_types = _first(offered.key_types, (*known, *types))
            transport.start_client(timeout=HANDSHAKE_S)
            key = transport.get_remote_server_key()
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise UnreachableError(
                f"{self._name}: {route.host} port {route.port} does not answer as an SSH server: "
                f"{one_line(str(error)) or 'it closed the connection'}"
            ) from error
        self._check_host_key(route, known, key)
        try:
            self._authenticate(transport, route)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise LoginError(f"{self._name}: login as {route.user} failed: {one_line(str(error))}") from error
        return transport

    def _check_host_key(self, route: Route, known: Keys, key: paramiko.PKey) -> None:
        """Returns if `key` is the server's recorded key, or the user agrees to record it."""
        shown = f"{key.get_name()} {key.fingerprint}"
        if by := next((path for path in route.known_hosts if _revokes(path, key)), None):
            raise HostKeyError(f"{self._name}: the host key {shown} is marked as revoked in {by}; nothing was sent")
        same_type = known.get(key.get_name(), [])
        if key in same_type:
            return
        if known:
            old = (same_type or next(iter(known.values())))[0]
            where = next(path for path in route.known_hosts if _lookup(path, route.key_name))
            raise HostKeyError(
                f"{self._name}: the host key has CHANGED: {shown} instead of the recorded {old.get_name()} "
                f"{old.fingerprint}. Somebody may be listening in. If you know that the board was reinstalled, forget "
                f"the old key: ssh-keygen -f {where} -R '{route.key_name}'"
            )
        question = (
            f"{self._name}: the host key of {route.key_name} is not known: {shown}\n"
            "Compare it with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the board. Trust it? (yes/no) "
        )
        if self._ask is None:
            port = f" -p {route.port}" if route.port != 22 else ""
            raise HostKeyError(
                f"{self._name}: the host key of {route.key_name} is not known: {shown}. Connect once with "
                f"`ssh{port} {route.user}@{route.host}`, compare the fingerprint, and agree to record it"
            )
        if self._ask(question).strip().lower() != "yes":
            raise HostKeyError(f"{self._name}: the host key {shown} was not trusted; nothing was sent")
        _record(route.known_hosts[0], route.key_name, key)

    def _authenticate(self, transport: paramiko.Transport, route: Route) -> None:
        tried: list[str] = []
        with closing(paramiko.Agent()) as agent:  # it signs during the login only
            for name, key in self._keys(route, agent):
                tried.append(name)
                try:
                    if not transport.auth_publickey(route.user, key):
                        return
                except paramiko.BadAuthenticationType as error:
                    if not {"password", "keyboard-interactive"} & set(error.allowed_types):
                        raise
                    break
                except paramiko.AuthenticationException:
                    continue
        if self._ask_hidden is not None:
            tried.append("password")
            for _ in range(_PASSWORD_TRIES):
                try:
                    transport.auth_password(route.user, self._ask_hidden(f"{route.user}@{route.host}'s password: "))
                    return
                except paramiko.BadAuthenticationType:
                    break
                except paramiko.AuthenticationException:
                    continue
        raise LoginError(
            f"{self._name}: {route.user} was not let in (tried: {', '.join(tried) or 'no key was found'}); "
            f"copy your key with `ssh-copy-id -p {route.port} {route.user}@{route.host}`, or check the user name"
        )

    def _keys(self, route: Route, agent: paramiko.Agent) -> Iterator[tuple[str, paramiko.PKey]]:
        """(what it is called, key) in the order to try; protected files are opened with a passphrase asked for."""
        if not route.only_these_keys:
            for held in agent.get_keys():
                yield f"agent {held.comment or held.get_name()}", held
        paths = route.key_paths
        if not paths and not route.only_these_keys:
            paths = tuple(Path.home() / ".ssh" / f"id_{kind}" for kind in ("ed25519", "ecdsa", "rsa"))
        for path in paths:
            if path.is_file() and (key := self._load_key(path)) is not None:
                yield str(path), key

    def _load_key(self, path: Path) -> paramiko.PKey | None:
        try:
            try:
                return paramiko.PKey.from_path(path)
            except TypeError:  # cryptography's answer to a protected key without a passphrase
                if self._ask_hidden is None:
                    return None
                passphrase: Any = self._ask_hidden(f"Passphrase for {path}: ").encode()  # bytes, whatever it says
                return paramiko.PKey.from_path(path, passphrase)
        except (ValueError, OSError, paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm) as error:
            raise LoginError(f"{self._name}: the key {path} cannot be used: {one_line(str(error))}") from error


def _first(names: Sequence[str], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """`names` with those in `wanted` moved to the front."""
    front = tuple(name for name in wanted if name in names)
    return front + tuple(name for name in names if name not in front)


Keys = dict[str, list[paramiko.PKey]]
"""Host keys by type; a server may have several of one type while it changes them."""


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError as error:
        raise HostKeyError(f"{path}: host keys cannot be read: {error.strerror}; correct its permissions") from error


def _lookup(path: Path, name: str) -> Keys:
    """The keys that a known_hosts file has for `name`. A line that makes no sense matches nothing, as with ssh."""
    keys: Keys = {}
    for line in _lines(path):
        if not line or line[0] in "#@":
            continue
        try:
            entry = paramiko.hostkeys.HostKeyEntry.from_line(line)
        except (paramiko.hostkeys.InvalidHostKey, paramiko.SSHException, ValueError):
            continue
        if entry is not None and any(_names(written, name) for written in entry.hostnames):
            keys.setdefault(entry.key.get_name(), []).append(entry.key)
    return keys


def _names(written: str, name: str) -> bool:
    """True if `written`, as it stands in known_hosts, plain or hashed, is the name."""
    return written == name or (written.startswith("|1|") and paramiko.HostKeys.hash_host(name, written) == written)


def _revokes(path: Path, key: paramiko.PKey) -> bool:
    """True if a line `@revoked pattern type key` names the key, whatever the pattern."""
    return any(line.startswith("@revoked") and key.get_base64() in line.split() for line in _lines(path))


def _known_keys(route: Route) -> Keys:
    """Recorded keys of the server, from all files."""
    known: Keys = {}
    for path in route.known_hosts:
        for kind, keys in _lookup(path, route.key_name).items():
            known.setdefault(kind, []).extend(keys)
    return known


def _record(path: Path, name: str, key: paramiko.PKey) -> None:
    """Appends to known_hosts; what is there already stays as it is."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    line = f"{name} {key.get_name()} {key.get_base64()}\n"
    with path.open("a", encoding="ascii") as file:
        file.write(line if before.endswith(b"\n") or not before else "\n" + line)
