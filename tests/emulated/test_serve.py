"""The demo model served by the emulated Raspberry Pi 5, by the commands a user types, and by what may happen to it."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm import service, serving
from edgellm.cli import main
from edgellm.connection import connect
from edgellm.probe import home_of
from edgellm.remote import Remote
from edgellm.service_options import Wanted

MODEL = str(Path(__file__).resolve().parents[2] / "examples/voice_assistant/model")
BOARD = "virtual-rpi5"
NAME = f"served-{os.getpid()}"
"""Of this run alone: virtual boards show the processes of others, too."""


def said(*argv: str, code: int = 0) -> dict[str, Any]:
    """What a command prints with --json."""
    with pytest.MonkeyPatch.context() as streams:
        out = io.StringIO()
        streams.setattr("sys.stdout", out)
        assert main([*argv, "--board", BOARD, "--json"]) == code, out.getvalue()
    answer: dict[str, Any] = json.loads(out.getvalue())
    return answer


@pytest.fixture(scope="module")
def deployed(start_board, tmp_path_factory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        start_board(BOARD)
        yield said("deploy", MODEL, "--name", NAME)
        said("undeploy", "--model", NAME)


@pytest.fixture
def remote(deployed) -> Iterator[Remote]:
    with connect(BOARD) as remote:
        yield remote


def ask(port: int, question: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        return str(json.loads(connection.getresponse().read())["choices"][0]["message"]["content"])
    finally:
        connection.close()


def foreground(*options: str) -> tuple[subprocess.Popen[str], int]:
    """`edgellm serve` in a process of its own, and the port it made here."""
    argv = [
        sys.executable,
        "-m",
        "edgellm",
        "serve",
        "--board",
        BOARD,
        "--model",
        NAME,
        "--port",
        "0",
        "--json",
        *options,
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return process, int(json.loads(line)["port"])


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.strip()) == (130, "")


def servers(remote: Remote) -> int:
    return int(remote.run(["sh", "-c", f"ps | grep -c '[e]dgellm-rt serve .*{NAME}/'"]).text)


def test_the_boards_server_is_a_port_of_this_machine(deployed, remote: Remote) -> None:
    process, port = foreground("--sessions", "2")
    assert ask(port, "is the garage door locked") == "The garage door is unlocked."
    assert servers(remote) == 1
    interrupt(process)
    assert servers(remote) == 0  # it ended with its host


def test_a_server_in_the_background(deployed, remote: Remote) -> None:
    assert said("serve", "status")["running"] is False
    started = said("serve", "start")
    assert (started["running"], started["port"], started["health"]["good"]) == (True, serving.DEFAULT_PORT, True)
    process, port = foreground()  # uses the one that runs
    assert ask(port, "is the garage door locked") == "The garage door is unlocked."
    assert servers(remote) == 1
    interrupt(process)
    assert said("serve", "status")["health"]["good"] is True
    assert main(["serve", "start", "--board", BOARD]) == 1  # one is enough
    again = said("serve", "restart")
    assert (again["starts"], again["health"]["good"]) == (2, True)
    assert said("serve", "stop")["running"] is False
    assert servers(remote) == 0


def test_a_service_comes_back_and_follows_the_version_in_use(deployed, remote: Remote) -> None:
    """There is no systemd on this board: edgellm-rt keeps its own server."""
    home = home_of(remote)
    installed = said("service", "install")
    assert installed["service"]["kind"] == "supervised"
    assert installed["health"]["sha256"] == deployed["sha256"]
    before = serving.status(remote, home, NAME)
    remote.check(["kill", "-9", str(before.pid)])
    well = serving.wait_for_health(remote, serving.DEFAULT_PORT, deployed["sha256"])
    assert well.good, well
    after = serving.status(remote, home, NAME)
    assert after.starts == before.starts + 1
    assert after.pid != before.pid

    second = said("deploy", MODEL, "--name", NAME, "--scheme", "w8a8")
    assert second["sha256"] != deployed["sha256"]
    assert (second["healthy"], second["health"]["sha256"]) == (True, second["sha256"])
    back = said("rollback", "--model", NAME)
    assert (back["healthy"], back["health"]["sha256"]) == (True, deployed["sha256"])
    assert said("service", "status")["healthy"] is True

    port = str(serving.DEFAULT_PORT + 1)
    said("service", "install", "--keep", "--sessions", "2", "--port", port)
    wanted = service.made_with(remote, home, NAME)
    assert wanted == Wanted(int(port), ("--sessions", "2"), keep=True)
    again = said("deploy", MODEL, "--name", NAME, "--scheme", "w8a8", "--service")  # made anew, and as it was
    assert (again["healthy"], again["service"]["port"]) == (True, int(port))
    assert again["health"]["sha256"] == second["sha256"]
    assert service.made_with(remote, home, NAME) == wanted

    assert said("service", "remove")["removed"] is True
    assert service.find(remote, home, NAME) is None
    assert servers(remote) == 0
    assert said("service", "status")["service"] is None
