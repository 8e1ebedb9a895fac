"""64 clients at once with a server on this machine: polite ones, slow readers, leavers, and senders of rubbish.

    python -m tests.campaigns.load BUNDLE [--seconds 600] [--clients 64] [--seed 1]

Every request is one of a list of kinds, drawn from the seed. A polite one must be answered (200, and the same text for
the same question every time) or be told that the queue is full (503); a malformed one must get its status. At the end
the server must be idle, as large as after the first tenth of the time, and stop cleanly. Prints one line of figures.

What goes wrong while the machine stands still (a virtual machine that is paused, or a stopped process) runs into the
deadlines of client or server, and is counted by itself: "stood_still_s" says for how long it did.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

QUESTIONS = ("is the garage door locked", "turn on the desk lamp", "how warm is it outside", "which lights are on")
MALFORMED = (
    (b"rubbish\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 4000, 431),
    (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", 413),
    (
        b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{"prompt"',
        400,
    ),
    (b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
)


class Load:
    """What the clients share: the server's port, the answers so far, and what went wrong."""

    def __init__(self, port: int, until: float) -> None:
        self.port, self.until = port, until
        self.counts: collections.Counter[str] = collections.Counter()
        self.texts: dict[str, str] = {}
        self.wrong: list[str] = []
        self.lock = threading.Lock()
        self.stood_still_s = 0.0

    def note(self, kind: str) -> None:
        with self.lock:
            self.counts[kind] += 1

    def fail(self, text: str) -> None:
        with self.lock:
            self.wrong.append(text)

    def body(self, rng: random.Random, stream: bool) -> tuple[str, bytes]:
        question = rng.choice(QUESTIONS)
        message = {"messages": [{"role": "user", "content": question}], "temperature": 0, "stream": stream}
        return question, json.dumps(message).encode()

    def polite(self, rng: random.Random) -> None:
        stream = rng.random() < 0.5
        question, body = self.body(rng, stream)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", "/v1/chat/completions", body)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status == 503:
            self.note("503")
            return
        if answer.status != 200:
            self.fail(f"{answer.status}: {text[:200]}")
            return
        said = streamed(text) if stream else json.loads(text)["choices"][0]["message"]["content"]
        with self.lock:
            if self.texts.setdefault(question, said) != said:
                self.wrong.append(f"{question}: '{said}' is not '{self.texts[question]}'")
            self.counts["answered"] += 1

    def raw(self, rng: random.Random) -> socket.socket:
        _, body = self.body(rng, True)
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=300)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection

    def leave(self, rng: random.Random) -> None:
        with self.raw(rng) as connection:
            if rng.random() < 0.5:
                connection.recv(rng.randint(1, 200))
        self.note("left")

    def read_slowly(self, rng: random.Random) -> None:
        with self.raw(rng) as connection:
            got = b""
            while b"[DONE]" not in got and b" 503 " not in got[:30] and time.monotonic() < self.until + 60:
                piece = connection.recv(64)
                if not piece:
                    raise ConnectionError(f"a slow reader was cut off after {len(got)} bytes")
                got += piece
                time.sleep(0.002)
        self.note("read slowly")

    def pipeline(self, rng: random.Random) -> None:
        n = rng.randint(2, 8)
        one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        got = self.talk(one * (n - 1) + last)
        if got.count(b"HTTP/1.1 ") not in (1, n):  # 1: too many connections
            self.fail(f"{n} requests in a packet got {got.count(b'HTTP/1.1 ')} answers")
        self.note("pipelined")

    def misbehave(self, rng: random.Random) -> None:
        data, status = rng.choice(MALFORMED)
        got = self.talk(data)
        if not got.startswith((f"HTTP/1.1 {status} ".encode(), b"HTTP/1.1 503 ")):
            self.fail(f"{data[:40]!r} got {got[:40]!r}")
        self.note("malformed")

    def talk(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=300) as connection:
            connection.sendall(data)
            got = b""
            while piece := connection.recv(65536):
                got += piece
            return got

    def client(self, seed: str) -> None:
        rng = random.Random(seed)
        kinds = [self.polite] * 6 + [self.leave, self.read_slowly, self.pipeline, self.misbehave]
        while time.monotonic() < self.until:
            before = self.stood_still_s
            try:
                rng.choice(kinds)(rng)
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                text = f"{type(error).__name__}: {error}"
                if self.stood_still_s > before:
                    self.note(f"while it stood still: {type(error).__name__}")
                else:
                    self.fail(text)

    def watch_the_clock(self) -> None:
        """Notices when this process does not run."""
        seen = time.monotonic()
        while seen < self.until + 60:
            time.sleep(0.5)
            now = time.monotonic()
            if now - seen > 10:
                self.stood_still_s += now - seen
            seen = now


def streamed(text: str) -> str:
    """The text of a stream of events."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]", text[-200:]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])


def metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^edgellm_{name} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--program", type=Path, help="an edgellm-rt (default: the bundle's own)")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    program = args.program or args.bundle / "edgellm-rt"
    process = subprocess.Popen([str(program), "serve", str(args.bundle), "--port", "0"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    port = int(json.loads(process.stdout.readline())["port"])
    began = time.monotonic()
    load = Load(port, began + args.seconds)
    threads = [threading.Thread(target=load.client, args=(f"{args.seed}/{i}",)) for i in range(args.clients)]
    threading.Thread(target=load.watch_the_clock, daemon=True).start()
    for thread in threads:
        thread.start()
    time.sleep(args.seconds / 10)
    early = metric(port, "resident_bytes")
    for thread in threads:
        thread.join()
    while metric(port, "running") or metric(port, "waiting"):
        time.sleep(0.05)
    late, tokens, steps = (metric(port, name) for name in ("resident_bytes", "tokens_total", "steps_total"))
    process.terminate()
    code = process.wait(60)
    figures: dict[str, Any] = {**load.counts, "tokens": int(tokens), "steps": int(steps), "exit": code}
    figures |= {"resident_mb_early": round(early / 1e6, 1), "resident_mb_late": round(late / 1e6, 1)}
    figures["stood_still_s"] = round(load.stood_still_s)
    print(json.dumps(figures))
    for text in load.wrong[:20]:
        print(f"WRONG: {text}", file=sys.stderr)
    grew = late > early + 8e6
    return int(bool(load.wrong) or code != 0 or grew or not load.counts["answered"])


if __name__ == "__main__":
    sys.exit(main())
