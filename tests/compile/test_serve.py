"""edgellm-rt serve with the demo model: OpenAI's and Ollama's own clients, unmodified, and everything impolite."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

from edgellm.compile import compile_model

MODEL = Path(__file__).resolve().parents[2] / "examples/voice_assistant/model"
SYSTEM = "You are Ember, the assistant of this home.\nLights: kitchen light off, desk lamp on\nDoors: front door locked"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {"type": "object", "properties": {"device": {"type": "string"}}, "required": ["device"]},
        },
    }
    for name in ("turn_on", "turn_off", "lock", "unlock")
]
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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_model(MODEL, "local", "w4a8", tmp_path_factory.mktemp("serve") / "bundle").path


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


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    server = Server(bundle)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def asked(question: str) -> list[Any]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def run_alone(bundle: Path, question: str, n: int = 64) -> str:
    """What `edgellm-rt run` answers: one session, no server."""
    argv = [str(bundle / "edgellm-rt"), "run", str(bundle), "-p", question, "--system", SYSTEM, "-n", str(n), "--json"]
    done = subprocess.run([*argv, "--temperature", "0"], capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["text"])


# ---- OpenAI's client ----


def test_openai_chat_is_what_run_says(client: openai.OpenAI, model: str, bundle: Path) -> None:
    for question in QUESTIONS[:3]:
        answer = client.chat.completions.create(model=model, messages=asked(question), temperature=0, max_tokens=64)
        assert answer.choices[0].message.content == run_alone(bundle, question)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.usage.completion_tokens > 1


def test_openai_stream_gives_the_same(client: openai.OpenAI, model: str) -> None:
    kwargs: dict[str, Any] = {"model": model, "messages": asked(QUESTIONS[1]), "temperature": 0}
    whole = client.chat.completions.create(**kwargs)
    chunks = list(client.chat.completions.create(**kwargs, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_text_comes_as_it_is_computed(client: openai.OpenAI, model: str) -> None:
    """Many pieces, and the first one long before the last: the client hangs up after it, and that ends the answer."""
    kwargs: dict[str, Any] = {"model": model, "prompt": [5], "temperature": 0, "stream": True, "logit_bias": NO_END}
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**kwargs, max_tokens=600)]
    assert sum(map(bool, pieces)) > 5
    stream = client.completions.create(**kwargs, max_tokens=600)
    assert next(iter(stream)).choices[0].finish_reason is None
    stream.close()


@pytest.mark.parametrize("stream", [False, True])
def test_openai_tool_calls(client: openai.OpenAI, model: str, stream: bool) -> None:
    """A call, its result, and what the model says then."""
    messages = asked("turn on the kitchen light")
    if stream:
        calls, reasons = [], []
        for chunk in client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, temperature=0, stream=True
        ):
            calls += chunk.choices[0].delta.tool_calls or []
            reasons.append(chunk.choices[0].finish_reason)
            assert not chunk.choices[0].delta.content
        assert reasons[-1] == "tool_calls"
        call = calls[0]
        assert call.index == 0
        name, arguments, call_id = call.function.name, call.function.arguments, call.id
    else:
        answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, temperature=0)
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        [done] = answer.choices[0].message.tool_calls or []
        name, arguments, call_id = done.function.name, done.function.arguments, done.id
    assert (name, json.loads(arguments)) == ("turn_on", {"device": "kitchen light"})
    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}},
            ],
        },
        {"role": "tool", "tool_call_id": call_id, "content": '{"ok": true}'},
    ]
    second = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, temperature=0)
    assert second.choices[0].finish_reason == "stop"
    assert "kitchen light" in (second.choices[0].message.content or "")


def test_openai_without_tools_leaves_the_text_alone(client: openai.OpenAI, model: str) -> None:
    for extra in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = client.chat.completions.create(model=model, messages=asked(QUESTIONS[0]), temperature=0, **extra)
        assert "<tool_call>" in (answer.choices[0].message.content or "")
        assert not answer.choices[0].message.tool_calls


def test_openai_seed_n_stop_and_length(client: openai.OpenAI, model: str) -> None:
    kwargs: dict[str, Any] = {"model": model, "messages": asked("tell me about the lights"), "temperature": 8}
    first = client.chat.completions.create(**kwargs, seed=7, n=3, max_tokens=12)
    again = client.chat.completions.create(**kwargs, seed=7, n=3, max_tokens=12)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    single = client.chat.completions.create(**kwargs, seed=8, max_tokens=12)
    assert single.choices[0].message.content == texts[1]  # choice i has seed + i
    free = client.completions.create(model=model, prompt="Lights: kitchen", temperature=0, max_tokens=24)
    assert free.choices[0].finish_reason == "length"
    assert free.usage is not None
    assert free.usage.completion_tokens == 24
    stop = free.choices[0].text[5:8]
    cut = client.completions.create(model=model, prompt="Lights: kitchen", temperature=0, max_tokens=24, stop=[stop])
    assert cut.choices[0].text == free.choices[0].text.split(stop)[0]
    assert cut.choices[0].finish_reason == "stop"


def test_openai_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=asked(QUESTIONS[1]), temperature=0, logprobs=True, top_logprobs=5
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    for entry in content:
        tops = entry.top_logprobs
        assert len(tops) == 5
        assert (tops[0].token, tops[0].logprob) == (entry.token, entry.logprob)  # greedy
        assert [top.logprob for top in tops] == sorted((top.logprob for top in tops), reverse=True)
        assert bytes(entry.bytes or []).decode() == entry.token
        assert entry.logprob <= 0
    legacy = client.completions.create(model=model, prompt="Lights:", max_tokens=4, logprobs=2, temperature=0)
    assert legacy.choices[0].logprobs is not None
    assert len(legacy.choices[0].logprobs.top_logprobs or []) == 4


def test_openai_completions_of_several_prompts_and_ids(client: openai.OpenAI, model: str) -> None:
    texts = client.completions.create(model=model, prompt=["Lights:", "Doors:"], temperature=0, max_tokens=6)
    singles = [
        client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=6).choices[0].text
        for prompt in ("Lights:", "Doors:")
    ]
    assert [choice.text for choice in texts.choices] == singles
    by_ids = client.completions.create(model=model, prompt=[5, 6, 7], temperature=0, max_tokens=6)
    assert by_ids.usage is not None
    assert by_ids.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "gpt-5"}, 404, "model"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "long " * 9000}]}, 400, "messages"),
        ({"n": 17}, 400, "n"),
        ({"stop": [""]}, 400, "stop"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"tools": [{"function": {}}]}, 400, "tools"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
    ],
)
def test_openai_mistakes_are_named(
    client: openai.OpenAI, model: str, change: dict[str, Any], status: int, param: str
) -> None:
    body: dict[str, Any] = {"model": model, "messages": asked("hello"), **change}
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**body)
    assert (caught.value.status_code, caught.value.body["param"]) == (status, param)  # type: ignore[index]
    assert caught.value.message


# ---- Ollama's client, and what Home Assistant does with it ----


@pytest.fixture(scope="module")
def local(server: Server) -> Iterator[ollama.Client]:
    client = ollama.Client(host=server.url, timeout=60)
    yield client
    client._client.close()  # older ones have no close of their own


def test_ollama_lists_shows_and_pulls(local: ollama.Client, model: str) -> None:
    [listed] = local.list().models
    assert listed.model == f"{model}:latest"
    assert listed.size
    assert listed.details is not None
    assert listed.details.family == "llama"
    shown = local.show(model)
    assert "tools" in (shown.capabilities or [])
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] > 0
    assert local.ps().models[0].model == f"{model}:latest"
    assert local.pull(model).status == "success"
    assert [step.status for step in local.pull(model, stream=True)][-1] == "success"
    with pytest.raises(ollama.ResponseError, match=r"not on this board.*edgellm deploy") as caught:
        local.pull("llama3.2")
    assert caught.value.status_code == 404


def test_home_assistants_sequence(local: ollama.Client, bundle: Path) -> None:
    """List, chat with tools as a stream, the tool's result, the second turn as a stream."""
    name = local.list().models[0].model
    assert name is not None
    messages: list[Any] = asked("turn on the kitchen light")
    options = {"temperature": 0, "num_ctx": 8192}
    content, calls, last = "", [], None
    for part in local.chat(model=name, messages=messages, tools=TOOLS, stream=True, keep_alive=-1, options=options):
        content += part.message.content or ""
        calls += part.message.tool_calls or []
        last = part
    assert content == ""
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("turn_on", {"device": "kitchen light"})
    ]
    assert last is not None
    assert (last.done, last.done_reason) == (True, "stop")
    assert last.prompt_eval_count
    assert last.eval_count
    messages.append({"role": "assistant", "content": content, "tool_calls": [call.model_dump() for call in calls]})
    messages.append({"role": "tool", "tool_name": "turn_on", "content": '{"ok": true}'})
    parts = list(local.chat(model=name, messages=messages, tools=TOOLS, stream=True, options=options))
    assert "kitchen light" in "".join(part.message.content or "" for part in parts)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    whole = local.chat(model=name, messages=messages, tools=TOOLS, options=options)
    assert whole.message.content == "".join(part.message.content or "" for part in parts)


def test_ollama_generate(local: ollama.Client, model: str, bundle: Path) -> None:
    answer = local.generate(model=model, prompt=QUESTIONS[1], system=SYSTEM, options={"temperature": 0})
    assert answer.response == run_alone(bundle, QUESTIONS[1])
    streamed = local.generate(model=model, prompt=QUESTIONS[1], system=SYSTEM, stream=True, options={"temperature": 0})
    assert "".join(part.response for part in streamed) == answer.response
    raw = local.generate(model=model, prompt="Lights:", raw=True, options={"num_predict": 5, "temperature": 0})
    assert (raw.eval_count, raw.done_reason) == (5, "length")
    assert local.generate(model=model).done_reason == "load"
    with pytest.raises(ollama.ResponseError, match="'nobody' is not on this board"):
        local.generate(model="nobody", prompt="x")
    with pytest.raises(ollama.ResponseError, match="constrained"):
        local.generate(model=model, prompt="x", format="json")


def test_ollama_drops_the_oldest_turns(local: ollama.Client, model: str) -> None:
    turns = [
        {"role": role, "content": f"{number} " + "the lights in the kitchen " * 10}
        for number in range(40)
        for role in ("user", "assistant")
    ]
    messages = [{"role": "system", "content": SYSTEM}, *turns, {"role": "user", "content": QUESTIONS[1]}]
    answer = local.chat(model=model, messages=messages, options={"temperature": 0, "num_predict": 8})
    assert answer.done
    assert 100 < (answer.prompt_eval_count or 0) <= 1024


# ---- many at a time ----


def test_answers_do_not_see_each_other(server: Server, client: openai.OpenAI, model: str, bundle: Path) -> None:
    alone = {question: run_alone(bundle, question) for question in QUESTIONS}
    before = server.metric("steps_total"), server.metric("tokens_total")

    def ask(question: str) -> str | None:
        answer = client.chat.completions.create(model=model, messages=asked(question), temperature=0, max_tokens=64)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, QUESTIONS * 4))
    assert together == [alone[question] for question in QUESTIONS * 4]
    steps, tokens = server.metric("steps_total") - before[0], server.metric("tokens_total") - before[1]
    assert steps < tokens  # a step computes tokens of several answers


def test_a_full_queue_says_so_and_a_client_that_leaves_makes_room(bundle: Path) -> None:
    server = Server(bundle, "--sessions", "1", "--waiting", "1")
    body = json.dumps({"prompt": [5], "max_tokens": 1000, "stream": True, "logit_bias": NO_END})
    request = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    try:
        with server.connect() as running, server.connect() as waiting:
            running.sendall(request)
            assert running.recv(100).startswith(b"HTTP/1.1 200")
            waiting.sendall(request)
            server.wait_for("waiting", 1)
            status, answer = server.post("/v1/completions", {"prompt": "x"})
            assert (status, answer["error"]["code"]) == (503, "overloaded")
            status, headers, _ = server.request("POST", "/api/generate", {"prompt": "x"})
            assert (status, headers["Retry-After"]) == (503, "1")
        server.wait_for("running", 0)  # long before a thousand tokens
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
    assert server.request("POST", "/v1/embeddings", {})[0] == 501
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
        server = Server(bundle, env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"})
        heard = [manager.recv(100) for _ in range(4)]
        assert heard == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        assert server.stop() == 0
        while (last := manager.recv(100)) == b"WATCHDOG=1":
            pass
        assert last == b"STOPPING=1"


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
    started = supervise("start", str(bundle), "--port", "0", "--sessions", "1")[1]
    try:
        assert answers(started["port"])
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
