"""Random JSON schemas, and whether every answer satisfies its own.

    python -m tests.campaigns.schema [BUNDLE] --n 1000 --seed 1

Serves the bundle (the demo model, compiled for this machine, where none is given) and asks for an answer to each
schema at temperature 1. `jsonschema` judges, formats included. Answers that max_tokens cut off are counted apart;
whatever else is no JSON, or does not satisfy its schema, is printed with its schema and makes the campaign fail.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema

from tests.server import Server, compile_demo

WORDS = ("name", "device", "level", "on", "tags", "room", "größe", 'a "b"', "x/y", "items", "at", "note", "")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "hostname")
PATTERNS = ("^[a-z]{1,8}$", "^(on|off)$", "^\\d{2}:\\d{2}$", "^[^\\d\\s]{2,5}$", "^é?[A-F0-9]{4}(-[A-F0-9]{2}){0,2}$")


def number(rng: random.Random, whole: bool) -> dict[str, Any]:
    scale = rng.choice((1, 10, 100, 10_000, 10**9))
    low = rng.randint(-scale, scale) if whole else round(rng.uniform(-scale, scale), rng.randint(0, 6))
    width = rng.randint(2, 2 * scale) if whole else round(rng.uniform(0.01, 2 * scale), 3)
    schema: dict[str, Any] = {"type": "integer" if whole else "number"}
    if rng.random() < 0.8:
        schema[rng.choice(("minimum", "exclusiveMinimum"))] = low
    if rng.random() < 0.8:
        schema[rng.choice(("maximum", "exclusiveMaximum"))] = low + width
    return schema


def string(rng: random.Random) -> dict[str, Any]:
    kind = rng.random()
    if kind < 0.15:
        return {"type": "string", "format": rng.choice(FORMATS)}
    if kind < 0.35:
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    least = rng.choice((0, 0, 1, 3))
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 12)}


def value(rng: random.Random, depth: int) -> Any:
    simple = (None, True, False, 0, -3, 1.5, 1e-7, "", "on", 'a "b"\n', "é😀", [1, "a"], {"a": None})
    return rng.choice(simple if depth > 0 else simple[:-2])


def array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.choice((0, 0, 1, 2))
    schema: dict[str, Any] = {"type": "array", "items": random_schema(rng, depth - 1)}
    if rng.random() < 0.2:
        schema["prefixItems"] = [random_schema(rng, 0) for _ in range(rng.randint(1, 3))]
    return schema | {"minItems": least, "maxItems": least + rng.randint(0, 3)}


def record(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(WORDS, rng.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.5],
    }
    more = rng.random()
    if more < 0.5 or not names:
        schema["additionalProperties"] = False
    elif more < 0.52:  # rare: a tiny model at temperature 1 hardly ends an object that may go on
        schema["additionalProperties"] = random_schema(rng, 0)
    return schema


def choice(rng: random.Random, depth: int) -> dict[str, Any]:
    branches = [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:
        return {"anyOf": branches}
    if rng.random() < 0.5:
        return {"oneOf": [string(rng), number(rng, True), {"type": "null"}][: rng.randint(1, 3)]}
    tagged = []
    for name, branch in zip(("a", "b", "c"), branches, strict=False):
        properties = {"kind": {"const": name}, "value": branch}
        tagged.append({"type": "object", "properties": properties, "required": ["kind"]})
    return {"oneOf": tagged}


def random_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.random()
    if depth > 0 and kind < 0.45:
        return record(rng, depth)
    if depth > 0 and kind < 0.65:
        return array(rng, depth)
    if depth > 0 and kind < 0.75:
        return choice(rng, depth)
    kind = rng.random()
    if kind < 0.2:
        return {"enum": [value(rng, depth) for _ in range(rng.randint(1, 5))]}
    if kind < 0.25:
        return {"const": value(rng, depth)}
    if kind < 0.35:
        return {"type": rng.choice(("boolean", "null"))}
    if kind < 0.4:
        return {"type": ["string", "null"], "maxLength": rng.randint(0, 6)}
    return string(rng) if kind < 0.6 else number(rng, kind < 0.8)


def whole_schema(rng: random.Random) -> dict[str, Any]:
    """A schema with everything in it; one in five refers to itself."""
    schema = random_schema(rng, rng.randint(1, 4))
    if rng.random() < 0.2:
        node = record(rng, 1)
        node["properties"]["child"] = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
        inner = {"root": {"$ref": "#/$defs/node"}, "rest": schema}
        schema = {"$defs": {"node": node}, "type": "object", "properties": inner, "required": ["root"]}
    return schema


def judge(server: Server, index: int, seed: int) -> str:
    """What became of schema number `index`: "good", "cut", or what is wrong."""
    schema = whole_schema(random.Random(f"{seed} {index}"))
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    body = {"messages": [{"role": "user", "content": f"tell me about the home, {index}"}]}
    status, answer = server.post(
        "/v1/chat/completions", body | {"response_format": form, "temperature": 1, "seed": index, "max_tokens": 700}
    )
    if status != 200:
        return f"{status} {answer} for {json.dumps(schema)}"
    choice = answer["choices"][0]
    if choice["finish_reason"] == "length":
        return "cut"
    try:
        said = json.loads(choice["message"]["content"])
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(said)
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        return f"{error} in {choice['message']['content']!r} for {json.dumps(schema)}"
    return "good"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="default: the demo model, compiled now")
    parser.add_argument("--n", type=int, default=1000, help="schemas (default 1000)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        server = Server(args.bundle or compile_demo(Path(work)), "--waiting", "64")
        try:
            with ThreadPoolExecutor(8) as pool:
                results = list(pool.map(lambda index: judge(server, index, args.seed), range(args.n)))
        finally:
            ended = server.stop()
    wrong = [result for result in results if result not in ("good", "cut")]
    for result in wrong[:20]:
        print(result, file=sys.stderr)
    good, cut = results.count("good"), results.count("cut")
    print(f"{good} answers satisfy their schema, {cut} were cut off, {len(wrong)} do not")
    return int(bool(wrong) or ended != 0 or good < args.n // 2)


if __name__ == "__main__":
    sys.exit(main())
