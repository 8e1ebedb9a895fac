"""Compares the board's chat templates with jinja2, set up as transformers sets it up, on random conversations.

    python -m tests.campaigns.template --n 1000 --seed 1

Where jinja2 raises, the board must fail too, with the same text if the template raised it itself.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from crosscompile.template import Generation, compile_template
from tests.textlib import Template, TextError

DATA = Path(__file__).resolve().parent.parent / "data" / "templates"
DEMO = Path(__file__).resolve().parents[2] / "examples" / "voice_assistant" / "model"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATE_FAILED = 32
SENTENCES = [
    "Turn on the light.",
    "  what's the time?  ",
    "",
    "日本語 テスト",
    'say "hi" \\ <b>&</b>',
    "line\nbreak\t!",
    "naïve É",
]
SENTENCES += ["{{ not code }}", "emoji 👍🏽", "a" * 70, "tail \u2028 end\u00a0", "İstanbul ŞIK straße"]


class Raised(jinja2.TemplateError):
    """raise_exception was called."""


def environment() -> jinja2.Environment:
    """The environment of transformers.utils.chat_template_utils."""

    def raise_exception(message: str) -> str:
        raise Raised(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def random_value(rng: random.Random, depth: int = 0) -> Any:
    choice = rng.randrange(8 if depth < 3 else 5)
    if choice == 0:
        return rng.choice(SENTENCES)
    if choice == 1:
        return rng.choice([0, 1, -5, 42, 123456789012])
    if choice == 2:
        return rng.choice([0.5, 1e20, -2.25, 1e-9, 3.0, 0.1 + 0.2])
    if choice in (3, 4):
        return rng.choice([None, True, False, "x"])
    if choice == 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(["name", "room", "ключ", "a b", "value"]): random_value(rng, depth + 1) for _ in range(2)}


def random_tool(rng: random.Random) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"room": {"type": "string", "description": rng.choice(SENTENCES)}}}
    function: dict[str, Any] = {"name": rng.choice(["set_light", "get_time"]), "description": rng.choice(SENTENCES)}
    function |= {"parameters": parameters | {"required": ["room"], "extra": random_value(rng)}}
    if rng.random() < 0.2:
        function["return"] = {"type": "string"}
    return {"type": "function", "function": function}


def random_message(rng: random.Random, role: str) -> dict[str, Any]:
    identity = "".join(rng.choice("abcdef012345") for _ in range(rng.choice([9, 9, 9, 5])))
    if role == "call":
        calls = []
        for _ in range(rng.choice([1, 1, 1, 2])):
            arguments = {f"arg{i}": rng.choice([rng.choice(SENTENCES), "x"]) for i in range(rng.randrange(3))}
            if rng.random() < 0.5:
                arguments["v"] = random_value(rng)
            function = {"name": rng.choice(["set_light", "brave_search"]), "arguments": arguments}
            calls.append({"type": "function", "function": function, "id": identity})
        message: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
        if rng.random() < 0.5:
            message["content"] = rng.choice([None, "", "thinking"])
        return message
    if role == "tool":
        content = rng.choice([rng.choice(SENTENCES), random_value(rng), {"content": random_value(rng)}])
        return {"role": "tool", "content": content, "tool_call_id": identity}
    return {"role": role, "content": rng.choice(SENTENCES) if rng.random() < 0.98 else random_value(rng)}


def random_conversation(rng: random.Random) -> tuple[list[dict[str, Any]], dict[str, Any], bool]:
    """Messages, further variables, and whether an answer is asked for. Mostly well-formed, sometimes not."""
    roles = ["system"] if rng.random() < 0.5 else []
    for _ in range(rng.randrange(4)):
        roles.append("user")
        roles += ["call", "tool"] if rng.random() < 0.3 else []
        roles.append("assistant")
    if rng.random() < 0.6:
        roles.append("user")
    if rng.random() < 0.15 and roles:
        roles[rng.randrange(len(roles))] = rng.choice(["system", "user", "assistant", "tool", "call", "critic"])
    extra: dict[str, Any] = {}
    if rng.random() < 0.5:
        extra["tools"] = [random_tool(rng) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.2:
        extra["date_string"] = "24 Nov 2026"
    if rng.random() < 0.2:
        extra["tools_in_user_message"] = rng.random() < 0.5
    if rng.random() < 0.15:
        extra["builtin_tools"] = ["brave_search", "code_interpreter"]
    if rng.random() < 0.3:
        extra["enable_thinking"] = rng.random() < 0.5
    if rng.random() < 0.1:
        extra["documents"] = [{"doc_id": i, "title": rng.choice(SENTENCES), "text": "t"} for i in range(2)]
    messages = [random_message(rng, role) for role in roles]
    for message in messages:
        if message["role"] == "assistant" and rng.random() < 0.3:
            thought = rng.choice(SENTENCES)
            if rng.random() < 0.5:
                message["reasoning_content"] = thought
            elif isinstance(message.get("content"), str):
                message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
    return messages, extra, rng.random() < 0.5


def sources() -> dict[str, str]:
    """Every template to compare: tests/data/templates and, where it exists, the demo model's."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DATA.glob("*.jinja"))}
    if (DEMO / "chat_template.jinja").exists():
        found["demo"] = (DEMO / "chat_template.jinja").read_text(encoding="utf-8")
    elif (DEMO / "tokenizer_config.json").exists():
        config = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
        if "chat_template" in config:
            found["demo"] = config["chat_template"]
    return found


def compare(source: str, n: int, seed: int) -> tuple[int, int, list[str]]:
    """Compares n conversations. Returns how many, how many of them jinja2 refused, and the first difference."""
    theirs, ours = environment().from_string(source), Template(compile_template(source, TOKENS))
    rng = random.Random(seed)
    refused = 0
    for index in range(n):
        messages, extra, prompt = random_conversation(rng)
        variables = {"tools": None, "documents": None} | TOKENS | extra
        want: str | None = None
        raised = ""
        try:
            want = theirs.render(messages=messages, add_generation_prompt=prompt, **variables)
        except Raised as error:
            raised = str(error)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
            pass
        refused += want is None
        try:
            got: str | None = ours.render(json.dumps(messages), json.dumps(extra), prompt)
            text, status = "", 0
        except TextError as error:
            got, text, status = None, error.text, error.status
        if got != want or (want is None and status != TEMPLATE_FAILED) or (raised and text != raised):
            case = json.dumps([messages, extra, prompt], ensure_ascii=False)
            return index + 1, refused, [case, f"want {want!r} {raised!r}", f"got  {got!r} {text!r}"]
    ours.close()
    return n, refused, []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=1000, help="conversations per template")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    failed = False
    for name, source in sources().items():
        count, refused, found = compare(source, arguments.n, arguments.seed)
        print(f"{name:10} {count:6} conversations, {refused} refused, {'DIFFERENT' if found else 'equal'}")
        for line in found:
            print("   ", line)
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
