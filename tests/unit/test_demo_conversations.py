"""The demo model's conversations: reproducible, and nothing held out is ever trained on."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2.sandbox
import pytest
import tokenizers

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "voice_assistant"
HELD_OUT = ROOT / "tests" / "data" / "conversations_heldout.jsonl"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the training folder, whose scripts import each other as neighbours."""
    monkeypatch.syspath_prepend(str(EXAMPLE / "training"))
    return importlib.import_module


def take(generator: ModuleType, split: str, seed: int, count: int) -> list[Any]:
    return list(itertools.islice(generator.conversations(split, seed), count))


def user_texts(conversations: list[Any]) -> set[str]:
    messages = (message for one in conversations for message in one.messages)
    return {message["content"].lower().strip("?.! ") for message in messages if message["role"] == "user"}


def test_same_seed_gives_same_conversations(load: Any) -> None:
    generator = load("conversations")
    assert take(generator, "train", 3, 50) == take(generator, "train", 3, 50)
    assert take(generator, "train", 3, 50) != take(generator, "train", 4, 50)


def test_held_out_file_is_what_the_generator_writes(load: Any) -> None:
    stream = load("conversations").conversations("held_out", 11, 1)
    written = [json.loads(line)["messages"] for line in HELD_OUT.read_text().splitlines()]
    assert len(written) == 100
    assert written == [one.messages for one in itertools.islice(stream, 100)]


def test_no_list_shares_a_pattern_or_name_between_splits(load: Any) -> None:
    words = load("names").Words

    def lists(value: object, where: str) -> Any:
        if isinstance(value, words):
            yield where, value
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from lists(item, f"{where}[{key}]")
        elif isinstance(value, tuple):
            for item in value:
                yield from lists(item, where)

    found = [
        entry
        for module in (load("names"), load("patterns"))
        for name, value in vars(module).items()
        if name.isupper()
        for entry in lists(value, name)
    ]
    assert len(found) > 40
    for where, value in found:
        assert value.train, where
        assert value.held_out, where
        assert not set(value.train) & set(value.held_out), where


def test_held_out_names_and_sentences_do_not_occur_in_training(load: Any) -> None:
    generator = load("conversations")
    training, held_out = take(generator, "train", 1, 1500), take(generator, "held_out", 7, 150)
    assert not user_texts(training) & user_texts(held_out)

    homes, rng = load("home"), load("random").Random(5)
    trained = set().union(*(homes.draw(rng, "train").taken() for _ in range(2000)))
    unseen = set().union(*(homes.draw(rng, "held_out").taken() for _ in range(300)))
    assert not trained & unseen


def test_every_reference_answer_is_judged_right_and_its_opposite_wrong(load: Any) -> None:
    right = load("judge").right
    conversations = take(load("conversations"), "held_out", 9, 100)
    opposite = {" is on": " is off", " is off": " is on", "turn_on": "turn_off", "turn_off": "turn_on"}
    n_wrong = 0
    for one in conversations:
        for index, check in one.checks.items():
            message = one.messages[index]
            calls = [
                f"<tool_call>\n{json.dumps(call['function'])}\n</tool_call>" for call in message.get("tool_calls", ())
            ]
            answer = message["content"] + "\n".join(calls)
            assert right(answer, check), answer
            assert not right("", check), answer
            for word, other in opposite.items():
                if word in answer and check.category in ("command", "state, one device"):
                    assert not right(answer.replace(word, other), check), answer
                    n_wrong += 1
                    break
    assert n_wrong > 50


def test_chat_template_gives_the_text_the_model_was_trained_on(load: Any) -> None:
    generator, vocabulary = load("conversations"), load("vocabulary")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)  # as transformers defines it
    template = environment.from_string((EXAMPLE / "model" / "chat_template.jinja").read_text())
    for one in take(generator, "train", 2, 200):
        tools = generator.TOOLS if one.tools else None
        for prompt in (False, True):
            text = template.render(messages=one.messages, tools=tools, add_generation_prompt=prompt)
            assert text == vocabulary.render(one.messages, one.tools, prompt)
    default = template.render(messages=[{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert default.startswith("<|im_start|>system\nYou are Ember, the assistant of this home.\nTime: ")
    assert default.endswith("<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_a_name_has_the_same_pieces_with_and_without_a_space_before_it(load: Any) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(EXAMPLE / "model" / "tokenizer.json"))
    names, rng = load("names"), load("random").Random(3)
    for _ in range(500):
        name = names.made_up(rng, "held_out")
        bare, spaced = (tokenizer.encode(text).tokens for text in (name, f" {name}"))
        assert [piece.removeprefix("Ġ") for piece in spaced if piece != "Ġ"] == bare


def test_speakers_of_tokens_are_those_of_the_messages(load: Any) -> None:
    vocabulary = load("vocabulary")
    tokenizer = tokenizers.Tokenizer.from_file(str(EXAMPLE / "model" / "tokenizer.json"))
    for one in take(load("conversations"), "held_out", 2, 20):
        ids, speakers = vocabulary.encode(tokenizer, one)
        for role in ("user", "tool"):
            said = [token for token, speaker in zip(ids, speakers, strict=True) if speaker == role]
            expected = "".join(message["content"] for message in one.messages if message["role"] == role)
            assert tokenizer.decode(said) == expected
