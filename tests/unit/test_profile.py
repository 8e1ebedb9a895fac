"""Profiles: what a board says is checked against its plan, and joined with bytes and multiply-adds."""

import hashlib
import itertools
import json

import pytest

from edgellm.errors import BundleError, CommandError
from edgellm.profile_cli import as_json, grouped
from edgellm.profile_result import read_profile, trace_events
from edgellm.steps import Argument, Step, read_plan, work_of

MANIFEST = json.dumps({"model": {"vocab_size": 96, "sliding_window": 0}}).encode()


def argument(access, n_bytes):
    return {"access": access, "bytes": n_bytes}


def plan_document():
    """A plan of one layer as the compiler writes them, for 1 and 4 rows: hidden size 32, one head of 32, w4."""
    kernels, functions = [], []
    for n in (1, 4):
        first = len(kernels)
        kernels += [
            {"name": f"body{n}_embed", "args": [argument("r", 4 * n), argument("r", 3072), argument("w", 128 * n)]},
            {
                "name": f"body{n}_rope_append",
                "args": [argument("r", 384 * n), argument("rw", [4096, "blocks"]), argument("rw", [4096, "blocks"])],
            },
            {
                "name": f"body{n}_attention",
                "args": [
                    argument("r", 128 * n),
                    argument("r", [4096, "blocks"]),
                    argument("r", [4096, "blocks"]),
                    argument("w", 128 * n),
                ],
            },
            {
                "name": f"body{n}_fused_linear_w41_residual_add",
                "args": [argument("r", 32 * n), argument("r", 512), argument("r", 64), argument("w", 128 * n)],
            },
        ]
        steps = [
            {"kernel": first, "args": [["i", "tokens"], ["w", 0], ["a", 0]]},
            {"kernel": first + 1, "args": [["a", 0], ["s", 0], ["s", 1]]},
            {"kernel": first + 2, "args": [["a", 0], ["s", 0], ["s", 1], ["a", 64]]},
            {"kernel": first + 3, "args": [["a", 0], ["w", 1], ["w", 2], ["a", 64]]},
        ]
        functions.append({"name": "body", "n": n, "steps": steps})
    kernels.append({"name": "head1_gather", "args": [argument("r", 512), argument("r", 4), argument("w", 128)]})
    functions.append({"name": "head", "n": 1, "steps": [{"kernel": 8, "args": [["a", 0], ["i", "rows"], ["a", 0]]}]})
    return {
        "weights": [
            {"tensor": "model.embed_tokens.weight", "bytes": 3072},
            {"tensor": "model.layers.0.mlp.down_proj.weight", "bytes": 512},
            {"tensor": "model.layers.0.mlp.down_proj.weight.scale", "bytes": 64},
        ],
        "states": [{"name": "k.0", "bytes_per_block": 4096}, {"name": "v.0", "bytes_per_block": 4096}],
        "kernels": kernels,
        "functions": functions,
    }


def plan():
    return read_plan(json.dumps(plan_document()).encode(), "plan.json")


def board_lines(calls, phase="prefill", tokens=6, depth=0):
    """What edgellm-rt profile prints for these (role, n) calls, each step 1000 ns longer than the one before."""
    head = {"profile": 1, "name": "m", "scheme": "w4a8", "tier": "dotprod"}
    head["manifest"] = hashlib.sha256(MANIFEST).hexdigest()
    threads = {"threads_prefill": 4, "threads_decode": 2}
    lines = [head, {"phase": phase, "tokens": tokens, "depth": depth, "runs": 3, **threads}]
    ns = 0
    for call, key in enumerate(calls):
        for index, step in enumerate(plan().functions[key].steps):
            ns += 1000
            where = {"call": call, "function": key[0], "n": key[1], "step": index}
            lines.append({**where, "kernel": step.kernel, "ns": ns, "median_ns": ns + 1})
    lines.append({"done": phase, "steps_ns": 1, "watched_ns": 50000, "plain_ns": 48000, "share": 1})
    return lines


def read(lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return read_profile(text.encode(), plan(), MANIFEST, "kitchen")


CALLS = [("body", 4), ("body", 4), ("head", 1)]


def test_work_comes_from_the_plan():
    document = plan()
    embed, append, attention, linear = document.functions["body", 4].steps

    def work(step, first=0, rows=4, window=0):
        return work_of(step, document, 4, first, rows, 96, window)

    assert work(embed).weight_bytes == 4 * 3072 // 96
    assert work(append).kv_bytes == 4 * 8192 // 64
    assert work(attention).kv_bytes == 8192
    assert work(attention, first=62).kv_bytes == 2 * 8192  # positions 62 to 65: a second block
    assert work(attention).multiply_adds == 2 * 32 * (1 + 2 + 3 + 4)
    assert work(attention, first=100, window=3).multiply_adds == 2 * 32 * 4 * 3
    assert work(attention, first=190, window=3).kv_bytes == 2 * 8192  # 188 to 193
    assert (work(linear).weight_bytes, work(linear).multiply_adds) == (576, 512 * 2 * 4)
    assert work(linear).activation_bytes == 4 * (32 + 128)


def test_a_gpu_reads_an_expert_once_for_all_of_its_rows():
    """64 rows of 4 experts of 32 by 32, by a table in place of their experts' numbers, or each by itself."""

    def step(name, picked):
        sizes = [("a", 2048), ("a", 256), ("a", picked), ("i", 128), ("w", 4 * 512), ("w", 4 * 64), ("a", 8192)]
        arguments = [Argument("r", kind, 0, n_bytes, None) for kind, n_bytes in sizes]
        return Step(name, "model.layers.0.mlp.experts.down_proj.weight", tuple(arguments))

    for name, picked in (("body32_experts4_w4", 256), ("body32_experts4_w4_64grouped1", 4 * 7 * 18)):
        made = step(name, picked)
        assert made.operation == "experts_w4"
        work = work_of(made, plan(), 32, 0, 32, 96, 0)
        assert (work.weight_bytes, work.multiply_adds) == (4 * 576, 64 * 1024)


def test_steps_add_up_and_are_grouped():
    (phase,) = read(board_lines(CALLS)).phases
    assert (phase.threads, len(phase.steps)) == (4, 9)
    assert phase.steps_ns == 45000
    assert phase.share == 45000 / 48000
    second = phase.steps[6]  # attention of the second call: rows 4 and 5, then padding
    assert second.step.operation == "attention"
    assert second.work.multiply_adds == 2 * 32 * (5 + 6)
    names = [(name, len(members)) for name, members in grouped(phase)]
    assert names[0] == ("fused_linear_w4_residual_add mlp.down_proj", 2)
    assert names[-1] == ("embed embed_tokens", 2)
    document = as_json(read(board_lines(CALLS)))
    assert document["phases"]["prefill"]["steps"][3]["gops"] == round(2 * 4096 / 4000, 3)


def test_the_timeline_is_a_trace_event_document():
    document = json.loads(json.dumps(trace_events(read(board_lines(CALLS)))))
    events = document["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    assert all(isinstance(event["pid"], int) and isinstance(event["tid"], int) for event in events)
    assert all(event["args"]["name"] for event in events if event["ph"] == "M")
    steps = [event for event in events if event["ph"] == "X" and event["tid"] == 2]
    for before, after in itertools.pairwise(steps):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    assert sum(event["dur"] for event in steps) == pytest.approx(45.0)
    functions = [event for event in events if event["ph"] == "X" and event["tid"] == 1]
    assert [event["name"] for event in functions] == ["body of 4 rows", "body of 4 rows", "head of 1 rows"]
    assert sum(event["dur"] for event in functions) == pytest.approx(45.0)


@pytest.mark.parametrize(
    ("kernel", "operation"),
    [
        ("body1_fused_linear_w41_residual_add", "fused_linear_w4_residual_add"),
        ("body64_linear_w82", "linear_w8"),
        ("body8_linear_f32", "linear_f32"),
        ("body8_fused_linear_f163_residual_add1", "fused_linear_f16_residual_add"),
        ("head1_rms_norm_quant3", "rms_norm_quant"),
    ],
)
def test_operations_lose_the_numbers_of_their_symbols(kernel, operation):
    assert Step(kernel, "", ()).operation == operation


def changed(index, **fields):
    lines = board_lines(CALLS)
    lines[index] = {**lines[index], **fields}
    return lines


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["\x1b[31mnot JSON"],
        ["[1]"],
        ["[" * 100_000],
        board_lines(CALLS)[:-1],
        board_lines(CALLS)[:1],
        board_lines(CALLS)[:5] + board_lines(CALLS)[6:],
        board_lines(CALLS)[:5] + board_lines(CALLS)[-1:],
        changed(1, phase="dream"),
        changed(1, tokens=0),
        changed(1, threads_prefill=True),
        changed(2, n=3),
        changed(2, function="tail"),
        changed(2, call=7),
        changed(2, kernel="rm -rf"),
        changed(3, step=3),
        changed(3, ns=-1),
        changed(3, ns="1"),
        [*board_lines(CALLS)[:3], json.dumps(board_lines(CALLS)[3]).replace("2000,", "NaN,"), *board_lines(CALLS)[4:]],
        changed(-1, plain_ns=0),
        changed(-1, done="decode"),
    ],
)
def test_a_board_that_talks_nonsense_is_not_believed(lines):
    with pytest.raises(CommandError, match="kitchen: edgellm-rt profile said something unexpected") as error:
        read(lines)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_model_that_changed_meanwhile():
    with pytest.raises(CommandError, match="was replaced while it was measured"):
        read(changed(0, manifest="0" * 64))


def edited(*path, to):
    document = plan_document()
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "no JSON object"),
        (edited("weights", to=3), "weights must be a list"),
        (edited("weights", 0, "tensor", to="a\nb"), "tensor must be a name"),
        (edited("states", 0, "bytes_per_block", to=0), "bytes_per_block must be"),
        (edited("kernels", 0, "args", 0, "access", to="x"), "access must be"),
        (edited("kernels", 0, "args", 0, "bytes", to=1 << 60), "bytes must be"),
        (edited("functions", 0, "name", to="leg"), "neither"),
        (edited("functions", 0, "n", to=1 << 20), "n must be"),
        (edited("functions", 0, "steps", 0, "kernel", to=99), "a step's kernel must be"),
        (edited("functions", 0, "steps", 0, "args", to=[]), "differ in the number"),
        (edited("functions", 0, "steps", 0, "args", 1, to=["w", 3]), "a place must be"),
        (edited("functions", 0, "steps", 0, "args", 1, to=["q", 0]), r"no \[kind, value\]"),
        (edited("functions", to=[]), "lacks a body"),
    ],
)
def test_plans_are_checked(text, said):
    with pytest.raises(BundleError, match=f"^there: .*{said}.*; compile and deploy the model again$"):
        read_plan(text, "there")
