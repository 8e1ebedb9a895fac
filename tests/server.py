"""A running `edgellm-rt serve` with the demo model, for the tests that talk to it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from edgellm.compile import compile_model

MODEL = Path(__file__).resolve().parents[1] / "examples/voice_assistant/model"
SYSTEM = "You are Ember, the assistant of this home.\nLights: kitchen light off, desk lamp on\nDoors: front door locked"
NO_END = {"0": -10000, "2": -10000}
"""A bias against the tokens that end an answer."""
QUESTIONS = [
    "turn on the kitchen light",
    "is the front door locked",
    "switch off the desk lamp",
    "which lights are on",
    "unlock the front door",
    "is the kitchen light on",
]


def compile_demo(directory: Path) -> Path:
    """A bundle of the demo model for this machine."""
    return compile_model(MODEL, "local", "w4a8", directory / "bundle").path


class Server:
    """A running `edgellm-rt serve`."""

    def __init__(self, bundle: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        argv = [str(bundle / "edgellm-rt"), "serve", str(bundle), "--port", "0", *arguments]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.ready = json.loads(line)
        self.port: int = self.ready["port"]
        self.url = f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body)
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, text = self.request("POST", path, body, headers)
        return status, json.loads(text)

    def metric(self, name: str) -> float:
        text = self.request("GET", "/metrics")[2].decode()
        found = re.search(rf"^edgellm_{name} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def wait_for(self, name: str, value: float) -> None:
        """Waits, without a clock of its own, until a metric has a value; pytest-timeout ends it if it never does."""
        while self.metric(name) != value:
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


def asked(question: str) -> list[Any]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def run_alone(bundle: Path, question: str, n: int = 64) -> str:
    """What `edgellm-rt run` answers: one session, no server."""
    argv = [str(bundle / "edgellm-rt"), "run", str(bundle), "-p", question, "--system", SYSTEM, "-n", str(n), "--json"]
    done = subprocess.run([*argv, "--temperature", "0"], capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["text"])
