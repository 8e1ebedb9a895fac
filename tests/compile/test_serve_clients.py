"""edgellm-rt serve and the official clients of OpenAI and Ollama, unmodified; and what Home Assistant does with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

from tests.server import NO_END, QUESTIONS, SYSTEM, Server, asked, run_alone

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


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


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
        ({"response_format": {"type": "xml"}}, 400, "response_format"),
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


def test_ollama_generate(server: Server, local: ollama.Client, model: str, bundle: Path) -> None:
    answer = local.generate(model=model, prompt=QUESTIONS[1], system=SYSTEM, options={"temperature": 0})
    assert answer.response == run_alone(bundle, QUESTIONS[1])
    streamed = local.generate(model=model, prompt=QUESTIONS[1], system=SYSTEM, stream=True, options={"temperature": 0})
    assert "".join(part.response for part in streamed) == answer.response
    raw = local.generate(model=model, prompt="Lights:", raw=True, options={"num_predict": 5, "temperature": 0})
    assert (raw.eval_count, raw.done_reason) == (5, "length")
    assert local.generate(model=model).done_reason == "load"
    with pytest.raises(ollama.ResponseError, match="'nobody' is not on this board"):
        local.generate(model="nobody", prompt="x")
    status, said = server.post("/api/generate", {"prompt": "x", "format": "yaml"})
    assert (status, "'format' is" in said["error"]) == (400, True)


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
