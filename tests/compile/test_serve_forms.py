"""Answers of a form, from edgellm-rt serve: schemas, grammars and forced calls, as the official clients ask."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import ollama
import openai
import pytest
from pydantic import BaseModel, Field

from tests.campaigns import schema as campaign
from tests.server import Server, asked

SAMPLE = 40
"""Random schemas; `python -m tests.campaigns.schema` asks for a thousand."""


class Device(BaseModel):
    """One device of the home."""

    name: str = Field(max_length=12)
    kind: Literal["light", "lock"]
    level: int | None = Field(ge=0, le=100)


class Home(BaseModel):
    rooms: list[Device] = Field(max_length=3)
    warmest: float = Field(gt=-20, lt=45)
    is_locked: bool


class TurnOn(BaseModel):
    """Turns a device on."""

    device: Literal["kitchen light", "desk lamp"]
    percent: int = Field(ge=1, le=100)


@pytest.fixture(scope="module")
def local(server: Server) -> Iterator[ollama.Client]:
    client = ollama.Client(host=server.url, timeout=60)
    yield client
    client._client.close()  # older ones have no close of their own


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


# ---- OpenAI's client ----


@pytest.mark.parametrize("temperature", [0, 1])
def test_openai_parses_pydantic_models(client: openai.OpenAI, model: str, temperature: float) -> None:
    answer = client.chat.completions.parse(
        model=model, messages=asked("which lights are on"), response_format=Home, temperature=temperature, seed=5
    )
    assert answer.choices[0].finish_reason == "stop"
    home = answer.choices[0].message.parsed
    assert isinstance(home, Home)
    assert len(home.rooms) <= 3
    assert -20 < home.warmest < 45


def test_openai_streams_a_parsed_model(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=asked("is the front door locked"), response_format=Device, temperature=1, seed=1
    ) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds
    assert isinstance(answer.choices[0].message.parsed, Device)


def test_openai_json_object(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=asked("turn on the desk lamp"), response_format={"type": "json_object"}, temperature=0
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_several_answers_share_a_form(client: openai.OpenAI, model: str) -> None:
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "level", "schema": {"type": "integer", "minimum": 10, "maximum": 99}},
    }
    answer = client.chat.completions.create(
        model=model, messages=asked("how warm is it"), response_format=form, n=6, temperature=3, seed=1
    )
    assert all(10 <= int(choice.message.content or "") <= 99 for choice in answer.choices)
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_an_answer_cut_off_says_so(client: openai.OpenAI, model: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "minLength": 500}}}
    answer = client.chat.completions.create(
        model=model, messages=asked("tell me everything"), response_format=form, max_tokens=9
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=model, messages=asked("x"), response_format=Home, max_tokens=5)


@pytest.mark.parametrize("choice", ["required", "named"])
@pytest.mark.parametrize("stream", [False, True])
def test_openai_forces_a_call(client: openai.OpenAI, model: str, choice: str, stream: bool) -> None:
    tools = [openai.pydantic_function_tool(TurnOn), openai.pydantic_function_tool(Device)]
    wanted: Any = "required" if choice == "required" else {"type": "function", "function": {"name": "Device"}}
    kwargs: dict[str, Any] = {"messages": asked("what time is it"), "tools": tools, "tool_choice": wanted}
    kwargs |= {"model": model, "temperature": 1, "seed": 3, "parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(**kwargs) as events:
            answer = events.get_final_completion()
    else:
        answer = client.chat.completions.parse(**kwargs)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert not answer.choices[0].message.content
    [call] = answer.choices[0].message.tool_calls or []
    made = {"TurnOn": TurnOn, "Device": Device}[call.function.name].model_validate_json(call.function.arguments)
    assert choice == "required" or isinstance(made, Device)


def test_a_form_and_tools_together(client: openai.OpenAI, model: str) -> None:
    """With tools to call and a form to answer in, it is either a call or the form."""
    tools = [openai.pydantic_function_tool(TurnOn)]
    kinds = set()
    for seed, question in enumerate(("turn on the kitchen light", "is the front door locked", "which lights are on")):
        answer = client.chat.completions.parse(
            model=model, messages=asked(question), tools=tools, response_format=Device, temperature=0, seed=seed
        )
        message = answer.choices[0].message
        kinds.add("call" if message.tool_calls else "form")
        assert message.tool_calls or isinstance(message.parsed, Device)
    assert "call" in kinds


def test_a_grammar(client: openai.OpenAI, model: str) -> None:
    grammar = 'root ::= word (", " word){1,3} "."\nword ::= [a-zé]{2,6}  # of two letters at least'
    answer = client.chat.completions.create(
        model=model, messages=asked("name the rooms"), temperature=1, seed=2, extra_body={"grammar": grammar}
    )
    assert re.fullmatch(r"[a-zé]{2,6}(, [a-zé]{2,6}){1,3}\.", answer.choices[0].message.content or "")
    text = client.completions.create(model=model, prompt="Lights:", extra_body={"grammar": 'root ::= " on" | " off"'})
    assert text.choices[0].text in (" on", " off")
    assert text.choices[0].finish_reason == "stop"


def form_of(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (form_of({"properties": {"a": {"multipleOf": 3}}}), "response_format", "#/properties/a: 'multipleOf'"),
        (form_of({"items": {"type": "array", "uniqueItems": True}}), "response_format", "#/items: 'uniqueItems'"),
        (form_of({"minimum": 3, "type": "integer", "maximum": 2}), "response_format", "nothing satisfies it"),
        (form_of({"type": "array", "maxItems": 30000}), "response_format", "too large"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "wants"),
        ({"grammar": 'root ::= "a" other'}, "grammar", "no rule 'other'"),
        ({"grammar": 7}, "grammar", "must be a text"),
        ({"tools": [], "tool_choice": "required"}, "tools", "no 'tools'"),
        (
            {"tools": [openai.pydantic_function_tool(TurnOn)], "tool_choice": {"function": {"name": "x"}}},
            "tool_choice",
            "not among",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
                "tool_choice": "required",
            },
            "tools",
            "tools/0/function/parameters: 'not'",
        ),
    ],
)
def test_what_is_not_supported_is_named(server: Server, body: dict[str, Any], param: str, said: str) -> None:
    status, answer = server.post("/v1/chat/completions", {"messages": asked("x"), **body})
    assert (status, answer["error"]["param"]) == (400, param)
    assert said in answer["error"]["message"]


# ---- Ollama's client ----


def test_ollama_structured_outputs(local: ollama.Client, model: str) -> None:
    answer = local.chat(
        model=model, messages=asked("which lights are on"), format=Home.model_json_schema(), options={"temperature": 1}
    )
    assert isinstance(Home.model_validate_json(answer.message.content or ""), Home)
    text = local.generate(model=model, prompt="tell me about the lock", format=Device.model_json_schema())
    assert isinstance(Device.model_validate_json(text.response), Device)
    free = local.generate(model=model, prompt="turn on the desk lamp", format="json", options={"temperature": 0})
    assert isinstance(json.loads(free.response), dict)
    with pytest.raises(ollama.ResponseError, match="#: 'contains' is not supported"):
        local.generate(model=model, prompt="x", format={"contains": {}})


# ---- many, and the command line ----


def test_answers_to_one_prompt_share_what_is_computed(client: openai.OpenAI, model: str) -> None:
    """Four sessions, one long prompt: computed once between them, though none of them has an earlier answer to keep."""
    kwargs: dict[str, Any] = {"model": model, "messages": asked("is the lamp on? " * 20), "temperature": 0}
    answer = client.chat.completions.create(**kwargs, n=4, max_tokens=8)
    assert len({choice.message.content for choice in answer.choices}) == 1
    again = client.chat.completions.create(**kwargs, max_tokens=8)
    assert again.choices[0].message.content == answer.choices[0].message.content
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_random_schemas(server: Server) -> None:
    results = [campaign.judge(server, index, seed=2) for index in range(SAMPLE)]
    assert [result for result in results if result not in ("good", "cut")] == []
    assert results.count("good") > SAMPLE * 0.9


def test_run_with_a_schema_and_a_grammar(bundle: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [str(bundle / "edgellm-rt"), "run", str(bundle), "-p", "turn on the kitchen light", "--temperature", "1"]
        return subprocess.run([*argv, "--seed", "4", *arguments], capture_output=True, text=True, check=False)

    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(Device.model_json_schema()))
    assert Device.model_validate_json(run("--json-schema", str(schema)).stdout)
    assert run("--json-schema", '{"const": "on"}').stdout == '"on"\n'
    assert run("--grammar", 'root ::= "yes" | "no"').stdout in ("yes\n", "no\n")
    refused = run("--json-schema", '{"type": "string", "contains": 1}')
    assert (refused.returncode, "'contains' is not supported" in refused.stderr) == (44, True)
