"""Whatever a client or what it uploads does, the agent goes on serving. Spoken without TVM's client, byte by byte."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent import (
    EXCEPTION,
    MAGIC,
    RETURN,
    Agent,
    Client,
    c_library,
    call,
    frame,
    program,
    receive,
    reply,
    sanitized_program,
    text,
)

CRASHES = {
    "segfault": "*(volatile int *)8 = 0;",
    "abort": "abort();",
    "exit": "_Exit(3);",
    "illegal instruction": "__builtin_trap();",
}


@pytest.fixture(scope="module", params=["shipped", "sanitized"])
def binary(request: pytest.FixtureRequest) -> Path:
    return program() if request.param == "shipped" else sanitized_program()


@pytest.fixture
def agent(binary: Path, tmp_path: Path) -> Iterator[Agent]:
    with Agent(binary, tmp_path) as running:
        yield running


def check_serves(agent: Agent) -> None:
    client = Client(agent.accepted())
    assert client.function("edgellm.agent_info") != 0
    client.close()


@pytest.mark.parametrize("crash", CRASHES)
def test_uploaded_code_that_crashes_ends_its_session_only(agent, tmp_path_factory, crash):
    library = c_library(tmp_path_factory.mktemp("crash") / "k.so", f"FUNCTION(main) {{ {CRASHES[crash]} return 0; }}")
    client = Client(agent.accepted())
    code, payload = client.ask(call(client.load(library)))
    assert code == EXCEPTION
    assert b"what was uploaded" in payload
    assert client.connection.recv(1) == b""
    assert agent.line()["how"].startswith("crashed: ")
    check_serves(agent)


def test_an_endless_loop_ends_with_the_session_time(agent, tmp_path_factory):
    library = c_library(tmp_path_factory.mktemp("loop") / "k.so", "FUNCTION(main) { for (volatile int i = 0;; i++); }")
    agent.key += " -timeout=2"  # as TVM's client sends it
    connection = agent.raw()
    agent.key = agent.key.removesuffix(" -timeout=2")
    magic, n = struct.unpack("<ii", receive(connection, 8))
    assert (magic, receive(connection, n)) == (MAGIC, f"server:{agent.key}".encode())
    client = Client(connection)
    code, payload = client.ask(call(client.load(library)))
    assert code == EXCEPTION
    assert payload[16:].startswith(b"RPCSessionTimeoutError: ")
    assert agent.line()["how"] == "timeout"
    check_serves(agent)


def test_the_agent_can_limit_sessions_itself(binary, tmp_path):
    with Agent(binary, tmp_path, "--longest", "0.5") as agent:
        client = Client(agent.accepted())
        assert reply(client.connection)[0] == EXCEPTION
        check_serves(agent)


@pytest.mark.parametrize("key", ["", "x" * 32, "client", "a" * 500])
def test_a_wrong_key_is_refused(agent, key):
    text_ = f"client:{key}".encode()
    connection = agent.raw(struct.pack("<ii", MAGIC, len(text_)) + text_)
    assert receive(connection, 4) == struct.pack("<i", MAGIC + 2)
    assert connection.recv(1) == b""
    assert agent.line()["how"] == "refused"
    check_serves(agent)


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<ii", MAGIC, -1),
        struct.pack("<ii", MAGIC, 1 << 30),
        struct.pack("<i", 1),
    ],
)
def test_a_stranger_is_sent_away(agent, greeting):
    connection = agent.raw(greeting)
    with contextlib.suppress(OSError):  # it may have hung up already
        connection.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionResetError):  # what it had sent was not all read
        assert connection.recv(1) == b""
    assert agent.line()["how"] == "refused"
    check_serves(agent)


def test_half_a_greeting_keeps_nobody_waiting(agent):
    halves = [agent.raw(struct.pack("<i", MAGIC)) for _ in range(8)]
    check_serves(agent)
    for half in halves:
        half.close()
    agent.wait_until_idle()


@pytest.mark.parametrize("n", [65 << 20, 1 << 40, (1 << 64) - 1, 3, 1])
def test_a_frame_of_a_length_that_cannot_be_ends_the_session(agent, n):
    client = Client(agent.accepted())
    client.connection.sendall(struct.pack("<Qi", n, 3) + bytes(252))
    code, payload = reply(client.connection)
    assert code == EXCEPTION
    assert b"a frame of" in payload
    client.close()
    check_serves(agent)


def test_an_announced_length_takes_no_memory(agent):
    client = Client(agent.accepted())
    client.connection.sendall(struct.pack("<Qi", 60 << 20, 3) + bytes(1000))
    (child,) = agent.children()
    status = Path(f"/proc/{child}/status").read_text()
    resident_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    assert resident_kb < 20_000
    client.close()
    check_serves(agent)


def test_half_a_frame_ends_with_its_connection(agent):
    client = Client(agent.accepted())
    client.connection.sendall(frame(9, struct.pack("<i", 1) + text("edgellm.agent_info"))[:-5])
    client.close()
    assert agent.line()["how"] == "closed"
    check_serves(agent)


def test_malformed_frames_are_answered_and_the_session_goes_on(agent):
    client = Client(agent.accepted())
    upload = client.function("tvm.rpc.server.upload")
    shape = struct.pack("<QiiiBBHqQ", 77, 1, 0, 1, 2, 32, 1, 4, 0)
    malformed = [
        frame(99),
        frame(9, struct.pack("<i", 65)),
        frame(9, struct.pack("<i", -1)),
        frame(9, struct.pack("<iiQ", 1, 8, 1 << 63)),
        frame(9, struct.pack("<ii", 1, 999)),
        frame(10, struct.pack("<iiQ", 1, 4, 12345)),
        call(12345),
        call(upload),
        call(upload, struct.pack("<iQ", 4, 1 << 40)),
        frame(13, struct.pack("<iiiiiqiq", 3, 6, 1, 0, 1, 1 << 62, 1, 64)),
        frame(13, struct.pack("<iiiiiqiq", 3, 6, 2, 0, 1, 64, 1, 64)),
        frame(6, shape + struct.pack("<Q", 16)),
        frame(7, shape + struct.pack("<Q", 16) + bytes(16)),
        frame(7, shape + struct.pack("<Q", 16) + bytes(4000)),
    ]
    for message in malformed:
        assert client.ask(message)[0] == EXCEPTION
    assert client.function("edgellm.agent_info") != 0
    client.close()


def test_copies_stay_within_their_memory(agent):
    client = Client(agent.accepted())
    code, payload = client.ask(frame(13, struct.pack("<iiiiiqiq", 3, 6, 1, 0, 1, 64, 1, 64)))
    assert code == RETURN
    memory = struct.unpack("<iiQ", payload)[2]

    def tensor(n: int, offset: int) -> bytes:
        return struct.pack("<QiiiBBHqQ", memory, 1, 0, 1, 2, 32, 1, n, offset)

    for n, offset in ((17, 0), (16, 4), (1, 64), (1, (1 << 64) - 4), (-1, 0), (1 << 61, 0)):
        assert client.ask(frame(6, tensor(n, offset) + struct.pack("<Q", 4)))[0] == EXCEPTION
        assert client.ask(frame(7, tensor(n, offset) + struct.pack("<Q", 4) + bytes(4)))[0] == EXCEPTION
    assert client.ask(frame(7, tensor(4, 48) + struct.pack("<Q", 16) + b"0123456789abcdef"))[0] == RETURN
    code, payload = client.ask(frame(6, tensor(2, 56) + struct.pack("<Q", 8)))
    assert (code, payload) == (8, b"89abcdef")
    client.close()


def test_one_session_at_a_time(agent):
    first = Client(agent.accepted())
    second = agent.raw()
    second.settimeout(0.3)
    with pytest.raises(TimeoutError):
        second.recv(1)
    first.close()
    second.settimeout(60)
    assert struct.unpack("<i", receive(second, 4)) == (MAGIC,)
    second.close()


def test_many_sessions_leave_nothing_behind(agent):
    check_serves(agent)
    agent.wait_until_idle()
    before = agent.open_files()
    for _ in range(40):
        check_serves(agent)
    agent.wait_until_idle()
    assert agent.open_files() == before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_agent_and_session(binary, tmp_path, how):
    with Agent(binary, tmp_path, "--stay") as agent:
        client = Client(agent.accepted())
        os.kill(agent.process.pid, how)
        assert reply(client.connection)[0] == EXCEPTION
        assert agent.line()["how"] == "stopped"
        client.close()


def test_sessions_die_with_the_agent(binary, tmp_path):
    agent = Agent(binary, tmp_path)
    client = Client(agent.accepted())
    agent.process.kill()
    agent.process.wait()
    assert client.connection.recv(1) == b""
    client.close()
    for pipe in (agent.process.stdin, agent.process.stdout, agent.process.stderr):
        pipe.close()


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        ([], "short\n", "a key of 16 to 256"),
        ([], "", "a key of 16 to 256"),
        ([], "with spaces in it, long enough\n", "not allowed"),
        (["--work", "/nonexistent"], "k" * 32, "/nonexistent: No such file"),
        (["--tracker", "somewhere"], "", "--queue"),
        (["--tracker", "somewhere", "--queue", "q"], "", "--tracker wants"),
        (["--tracker", "127.0.0.1:1", "--queue", "q"], "", "tracker 127.0.0.1:1: Connection refused"),
    ],
)
def test_errors_are_one_line(binary, options, key, says):
    done = subprocess.run([binary, "rpc", *options], input=key, capture_output=True, text=True, check=False)
    assert done.returncode in (2, 10)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
