"""edgellm-rt serve: a full queue, impolite clients, its end, and the supervisor that keeps it running."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server import NO_END, Server


def posted(path: str, body: Any) -> bytes:
    text = json.dumps(body)
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def test_a_full_queue_says_so_and_a_client_that_leaves_makes_room(bundle: Path) -> None:
    server = Server(bundle, "--sessions", "1", "--waiting", "1")
    long = {"input": [[5] * 240] * 1300}  # 312,000 tokens: nothing below ends before it does, on however slow a machine
    try:
        with server.connect() as running, server.connect() as waiting:
            running.sendall(posted("/v1/embeddings", long))
            server.wait_for("running", 1)
            waiting.sendall(posted("/v1/completions", {"prompt": "x", "stream": True}))
            server.wait_for("waiting", 1)
            status, answer = server.post("/v1/completions", {"prompt": "x"})
            assert (status, answer["error"]["code"]) == (503, "overloaded")
            status, headers, _ = server.request("POST", "/api/generate", {"prompt": "x"})
            assert (status, headers["Retry-After"]) == (503, "1")
        server.wait_for("running", 0)
        assert server.metric("prompt_tokens_total") < 312_000
        assert server.metric("aborted_total") == 2
        assert server.metric("answers_dropped_total") == 2
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200
    finally:
        assert server.stop() == 0


# ---- impolite clients ----


def exchange(server: Server, data: bytes) -> bytes:
    """Sends bytes, and reads until the server closes."""
    with server.connect() as connection:
        connection.sendall(data)
        got = b""
        while piece := connection.recv(65536):
            got += piece
        return got


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"rubbish\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 4000, 431),
        (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\nConnection: close\r\n\r\n", 403),
    ],
)
def test_malformed_requests_get_their_status(server: Server, data: bytes, status: int) -> None:
    assert exchange(server, data).startswith(f"HTTP/1.1 {status} ".encode())


def test_bodies_that_are_no_requests(server: Server) -> None:
    for body in (
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"messages":1}',
        b'{"a":' * 100,
        b'{"messages":[{"role":"user"',
        b"1" * 99,
    ):
        status, _, text = server.request("POST", "/v1/chat/completions", body)
        assert status == 400, body
        assert json.loads(text)["error"]["type"] == "invalid_request_error"
        status, _, text = server.request("POST", "/api/chat", body)
        assert status == 400
        assert json.loads(text)["error"]
    assert server.request("GET", "/api/chat")[0] == 405
    assert server.request("PATCH", "/api/tags")[0] == 405
    assert server.request("GET", "/nowhere")[0] == 404
    assert server.request("POST", "/api/create", {})[0] == 501
    assert server.request("HEAD", "/")[2] == b""


def test_pipelining_and_chunks(server: Server) -> None:
    """Requests in one packet are answered in order; a body in chunks is a body."""
    body = json.dumps({"prompt": "Lights:", "max_tokens": 3}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    host = b"Host: localhost\r\n"
    answers = exchange(
        server,
        b"GET /health HTTP/1.1\r\n" + host + b"\r\n"
        b"POST /v1/completions HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        b"GET /api/version HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n",
    )
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.index(b'"status":"ok"') < answers.index(b"text_completion") < answers.index(b'"version"')
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\n"
            + host
            + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_more_answers_than_are_written_down_at_a_time(server: Server) -> None:
    n = 300
    with server.connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * (n - 1))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        got = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert got.count(b"HTTP/1.1 200") == n


def test_connections_that_wait_hold_no_memory(bundle: Path) -> None:
    server = Server(bundle, "--sessions", "1")

    def resident() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))

    try:
        before = resident()
        body = json.dumps({"prompt": False, "user": "x" * 1_000_000}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with ExitStack() as stack:
            for _ in range(40):
                connection = stack.enter_context(server.connect())
                connection.sendall(head + body)
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400")
            assert resident() - before < 8_000  # kB; 40 MB were sent
    finally:
        assert server.stop() == 0


def test_more_connections_than_allowed(bundle: Path) -> None:
    server = Server(bundle, "--sessions", "1")
    connections = [server.connect() for _ in range(135)]
    try:
        for connection in connections:  # each asks for something and does not finish
            connection.sendall(b"GET /health HT")
        for connection in connections:
            connection.sendall(b"TP/1.1\r\nHost: localhost\r\n\r\n")
        statuses = [connection.recv(12) for connection in connections]
        assert statuses.count(b"HTTP/1.1 200") >= 128
        assert set(statuses) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
    finally:
        for connection in connections:
            connection.close()
        assert server.stop() == 0


def test_a_token_is_wanted(bundle: Path, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("correct-horse-battery\n")
    secret.chmod(0o600)
    server = Server(bundle, "--token-file", str(secret))
    try:
        for headers in (
            {},
            {"Authorization": "Bearer wrong-horse-battery"},
            {"Authorization": "correct-horse-battery"},
        ):
            assert server.request("GET", "/v1/models", None, headers)[0] == 401
            assert server.request("GET", "/metrics", None, headers)[0] == 401
        assert server.request("GET", "/health")[0] == 200
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="correct-horse-battery", max_retries=0) as client:
            assert client.models.list().data
    finally:
        assert server.stop() == 0
    secret.chmod(0o644)
    argv = [str(bundle / "edgellm-rt"), "serve", str(bundle), "--port", "0"]
    done = subprocess.run([*argv, "--token-file", str(secret)], capture_output=True, text=True, check=False)
    assert (done.returncode, "chmod 600" in done.stderr) == (63, True)
    done = subprocess.run([*argv, "--listen", "0.0.0.0"], capture_output=True, text=True, check=False)
    assert (done.returncode, "--token-file" in done.stderr) == (2, True)


# ---- its end ----


def test_sigterm_finishes_what_was_begun(bundle: Path) -> None:
    server = Server(bundle, "--sessions", "1")
    results: list[tuple[int, Any]] = []
    body = {"prompt": [5], "max_tokens": 300, "logit_bias": NO_END}
    thread = threading.Thread(target=lambda: results.append(server.post("/v1/completions", body)))
    thread.start()
    server.wait_for("running", 1)
    server.process.send_signal(signal.SIGTERM)
    thread.join()
    assert results[0][0] == 200
    assert results[0][1]["usage"]["completion_tokens"] == 300
    assert server.stop() == 0
    with pytest.raises(OSError, match="refused"):
        server.connect()


def test_a_service_manager_hears_what_it_wants(bundle: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        server = Server(bundle, "--grace", "100", env=environment)
        heard = [manager.recv(100) for _ in range(4)]
        assert heard == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        assert server.stop() == 0
        while (last := manager.recv(100)) == b"WATCHDOG=1":
            pass
        assert last == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=120000000"  # the grace, and 20 s


# ---- in the background ----


def test_a_supervisor_keeps_one_server(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "serve"
    program = bundle / "edgellm-rt"

    def supervise(*arguments: str) -> tuple[int, Any]:
        argv = [str(program), "supervise", str(folder), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, json.loads(done.stdout) if done.returncode == 0 else done.stderr

    def answers(port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    assert supervise("status") == (0, {"running": False})
    assert not folder.exists()  # looking makes nothing
    assert supervise("start", str(tmp_path / "nowhere"))[1].startswith(
        "edgellm-rt: BUNDLE_MISSING: the server did not start"
    )
    assert supervise("status")[1]["running"] is False
    (folder / "log").write_text("a line\n" * 50_000)
    started = supervise("start", str(bundle), "--port", "0", "--sessions", "1")[1]
    try:
        assert answers(started["port"])
        assert (folder / "log.old").read_text() == "a line\n" * 50_000  # longer than logs grow
        assert (folder / "log").read_text() == ""
        assert supervise("start", str(bundle), "--port", "0")[0] == 50
        os.kill(started["server"], signal.SIGKILL)
        while (now := supervise("status")[1])["starts"] < 2 or now["state"] != "running":
            assert now["running"]
            time.sleep(0.05)
        assert answers(now["port"])
        again = supervise("restart")[1]
        assert (again["starts"], again["state"], again["pid"]) == (3, "running", started["pid"])
        assert answers(again["port"])
    finally:
        stopped = supervise("stop")
    assert stopped == (0, {"running": False, "stopped": True})
    assert not answers(again["port"])
    assert supervise("restart")[0] == 2


def test_a_supervisor_outlives_whoever_started_it(bundle: Path, tmp_path: Path) -> None:
    program, folder = bundle / "edgellm-rt", tmp_path / "serve"

    def supervise(what: str) -> Any:
        argv = [str(program), "supervise", str(folder), what]
        return json.loads(subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout)

    start = [str(program), "supervise", str(folder), "start", str(bundle), "--port", "0", "--sessions", "1"]
    starter = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not supervise("status")["running"]:
        assert starter.poll() is None or starter.returncode == 0
    starter.kill()
    starter.communicate()
    while (now := supervise("status")).get("state") != "running":
        assert now["running"]
    os.kill(now["pid"], signal.SIGKILL)  # and its server does not outlive it
    while supervise("status")["running"] or Path(f"/proc/{now['server']}/exe").exists():
        pass
    assert supervise("stop") == {"running": False, "stopped": False}
