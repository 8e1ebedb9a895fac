"""The board's chat templates against jinja2: a sample of tests.campaigns.template, and edges."""

from __future__ import annotations

import json
import random
import re

import pytest

from crosscompile import template as compiler
from crosscompile.errors import TemplateError
from crosscompile.template import compile_template
from tests.campaigns import template as campaign
from tests.textlib import ROOT, Template, TextError

BUNDLE_VERSION, TEMPLATE_INVALID, TEMPLATE_FAILED, TEMPLATE_LIMIT = 23, 31, 32, 33
HELLO = json.dumps([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("name", sorted(campaign.sources()))
def test_equals_jinja2(name: str) -> None:
    count, _, found = campaign.compare(campaign.sources()[name], 1000, seed=2)
    assert not found, f"conversation {count}: {found}"


def rendered(source: str, extra: dict[str, object] | None = None) -> str:
    return Template(compile_template(source, {})).render(HELLO, json.dumps(extra or {}), False)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% for c in m.content %}{{ loop.index }}{{ c }}{% endfor %}{% endfor %}",
        "{% set x = 1 %}{% for i in range(3) %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
        "{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(b=3, a=4) }}{{ f() }}",
        "{{ messages[0]['items'] is defined }}",
        "{{ [1, 2, 3][-1] }}{{ 'abc'[5] }}{{ none.x }}{{ messages[0].nothing }}",
        "{{ {'a': [1, {'b': none}]} | tojson(indent=3) }}",
        "{{ 1e16 }} {{ 123456789.125 }} {{ 1e-5 }} {{ 0.0001 }}",
        "{{ 2 ** -3 }} {{ -0.0 }} {{ 7.5 % 2 }} {{ -7.5 % 2 }} {{ -7.5 // 2 }} {{ 1e300 % 3.7 }}",
        "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.rsplit(' ', 1) }} {{ ' a b  c '.split(none, 1) }}",
        "  {% if true %}\n  x\n  {% endif %}\n y {%- if false %}{% endif -%}  z",
        "{{ messages | map(attribute='role') | join(', ') }}{{ [] | first }}{{ '' | length }}",
    ],
)
def test_small_templates(source: str) -> None:
    want = campaign.environment().from_string(source).render(messages=json.loads(HELLO), add_generation_prompt=False)
    assert rendered(source) == want


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("a\n{% include 'x' %}", "Include"),
        ("{{ messages | wordcount }}", "wordcount"),
        ("{{ messages is sameas 1 }}", "sameas"),
        ("{{ cycler(1) }}", "cycler"),
        ("{{ ''.encode() }}", "encode"),
        ("{% for m in messages recursive %}{% endfor %}", "recursive"),
        ("{{ range(*messages) }}", r"\*arguments"),
        ("\n\n{% if %}", "line 3"),
        ("{% call f() %}{% endcall %}", "CallBlock"),
    ],
)
def test_unknown_constructs_are_named(source: str, named: str) -> None:
    with pytest.raises(TemplateError, match=named) as caught:
        compile_template(source, {})
    assert "line" in str(caught.value)


def failure(source: str) -> TextError:
    with pytest.raises(TextError) as caught:
        rendered(source)
    return caught.value


def test_the_templates_own_message() -> None:
    error = failure("{{ raise_exception('Roles must alternate: ' ~ messages[0].role) }}")
    assert (error.status, error.text) == (TEMPLATE_FAILED, "Roles must alternate: user")


def test_errors_name_the_line() -> None:
    error = failure("a\nb\n{{ 1 + 'x' }}")
    assert error.status == TEMPLATE_FAILED
    assert "line 3" in error.text
    assert "'nobody' is undefined" in failure("{{ nobody.name }}").text


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for a in range(900) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ 'x' * 1000000000 }}",
        "{% for i in range(99999) %}{{ 'x' * 2000 }}{% endfor %}",
    ],
)
def test_runaway_templates_hit_a_limit(source: str) -> None:
    assert failure(source).status == TEMPLATE_LIMIT


def test_damaged_files_are_refused_or_harmless() -> None:
    rng = random.Random(4)
    data = compile_template(campaign.sources()["llama31"], campaign.TOKENS)
    for _ in range(500):
        damaged = bytearray(data)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        status = 0
        try:
            Template(bytes(damaged)).render(HELLO, None, True)
        except TextError as error:
            status = error.status
        assert status in (0, BUNDLE_VERSION, TEMPLATE_INVALID, TEMPLATE_FAILED, TEMPLATE_LIMIT)
    with pytest.raises(TextError) as caught:
        Template(data[:-8])
    assert caught.value.status == TEMPLATE_INVALID


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("OP_", ["invalid", *compiler.OPS[1:]]),
        ("FILTER_", compiler.FILTERS),
        ("TEST_", compiler.TESTS),
        ("METHOD_", compiler.METHODS),
        ("CALL_", compiler.FUNCTIONS),
    ],
)
def test_compiler_and_runtime_number_alike(prefix: str, names: list[str]) -> None:
    header = (ROOT / "runtime_c" / "src" / "template_parts.h").read_text(encoding="utf-8")
    enumeration = next(part for part in header.split("enum {")[1:] if part.strip().startswith(prefix))
    listed = re.findall(rf"{prefix}(\w+)", enumeration.split("}")[0])
    assert [name.lower() for name in listed] == [name.lower() for name in names]
