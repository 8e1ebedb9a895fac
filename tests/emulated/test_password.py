"""Logins with a password, against paramiko's own server: an sshd that takes passwords needs root and accounts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
import pytest

from edgellm.address import SshAddress
from edgellm.errors import LoginError
from edgellm.ssh import SshRemote

PASSWORD = "raspberry 'pi'"


class Doorman(paramiko.ServerInterface):
    """Lets `pi` in with the password; asks for it by the method it is told to."""

    def __init__(self, methods: str) -> None:
        self.methods = methods

    def get_allowed_auths(self, username: str) -> str:
        return self.methods

    def check_auth_password(self, username: str, password: str) -> int:
        right = "password" in self.methods and (username, password) == ("pi", PASSWORD)
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> object:
        return paramiko.InteractiveQuery("", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return paramiko.AUTH_SUCCESSFUL if responses == [PASSWORD] else paramiko.AUTH_FAILED


@dataclass
class Server:
    """Serves one connection after the other. methods: what it says it accepts."""

    known_hosts: Path
    methods: str = "password"
    key: paramiko.PKey = field(default_factory=lambda: paramiko.RSAKey.generate(2048))
    transports: list[paramiko.Transport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.key.get_name()} {self.key.get_base64()}\n")
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # closed
            transport = paramiko.Transport(connection)
            self.transports.append(transport)
            transport.add_server_key(self.key)
            transport.start_server(server=Doorman(self.methods), event=threading.Event())

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for transport in self.transports:
            transport.close()

    def login(self, *answers: str) -> list[str]:
        """Connects, giving these answers; returns what was asked."""
        asked: list[str] = []
        waiting = list(answers)

        def answer(question: str) -> str:
            asked.append(question)
            return waiting.pop(0)

        address = SshAddress("127.0.0.1", self.port, "pi", known_hosts_path=self.known_hosts)
        SshRemote(address, config_path=Path("/nonexistent"), ask_hidden=answer if answers else None).close()
        return asked


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    running = Server(tmp_path / "known_hosts")
    yield running
    running.close()


def test_a_password_is_asked_for_and_a_mistake_forgiven(server: Server) -> None:
    assert server.login(PASSWORD) == ["pi@127.0.0.1's password: "]
    assert len(server.login("wrong", PASSWORD)) == 2


def test_three_wrong_passwords_are_enough(server: Server) -> None:
    with pytest.raises(LoginError, match=r"pi was not let in \(tried: password\)"):
        server.login("a", "b", "c")


def test_a_server_that_asks_questions_gets_the_password(server: Server) -> None:
    server.methods = "keyboard-interactive"
    assert len(server.login(PASSWORD)) == 1


def test_without_a_terminal_no_password_is_asked_for(server: Server) -> None:
    with pytest.raises(LoginError, match="no key was found"):
        server.login()
