"""Attention's kernels on lavapipe, with the classes of GPUs forced, against NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile.codegen import SCALARS
from crosscompile.gpu.attention import merge_kernel, parts_kernel, splits_for
from crosscompile.gpu.attention_tiles import Tile
from crosscompile.gpu.attention_whole import BUFFERS, clearing_kernel, counters, whole_kernel
from crosscompile.gpu.choose import flat
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.kernels.kv_cache import KV_BLOCK, Heads
from crosscompile.kernels.rows import Form
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu, check
from crosscompile.spirv.emit import Shader, emit
from tests.shaders import DESKTOP, run_shader, run_shaders, validate

CLASSES = {
    "desktop": DESKTOP,
    "v3d": Gpu(schedule="v3d"),
    "small": Gpu(schedule="mali", invocations=128),
    "processor": Gpu(DESKTOP.capabilities, schedule="processor"),
}
"""With subgroups, with the floor, with the fewest threads that Vulkan allows, and where threads share nothing."""
BLOCKS = 40
"""Of the pool."""

Rows = Sequence[tuple[int, int]]
"""(session, position) of each row; position −1: of none."""


def prompt(n: int, end: int, session: int = 0) -> Rows:
    """The last n positions before `end`."""
    return [(session, end - n + i) for i in range(n)]


@dataclass
class Pool:
    """A layer's cache with what sessions have written, in the float values that a kernel shall see.

    What was never written is no number, and a session's blocks are in any order. table: (sessions, blocks of each).
    keys, values: (blocks, kv heads, 64, dim); stored_keys, stored_values: as they lie in memory.
    """

    table: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    stored_keys: np.ndarray
    stored_values: np.ndarray

    @classmethod
    def random(cls, heads: Heads, rows: Rows, rng: np.random.Generator) -> Pool:
        ends = [max((p for session, p in rows if session == s), default=-1) + 1 for s in range(1 + max(rows)[0])]
        # run_shader.c calls kernels with a table of one column: a session's number is where its blocks begin
        each = max(1, -(-max(ends) // KV_BLOCK))
        table = rng.permutation(BLOCKS)[: each * len(ends)].astype(np.int32).reshape(len(ends), each)
        written = np.zeros((BLOCKS, KV_BLOCK), bool)
        for session, end in enumerate(ends):
            for position in range(end):
                written[table[session, position // KV_BLOCK], position % KV_BLOCK] = True
        made = [_state(heads, written, key, rng) for key in (True, False)]
        return cls(table, made[0][0], made[1][0], made[0][1], made[1][1])


def _state(heads: Heads, written: np.ndarray, key: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(values, as stored) of keys or values."""
    values = rng.standard_normal((BLOCKS, heads.kv, KV_BLOCK, heads.dim)).astype(np.float32)
    hole = ~written[:, None, :]
    if heads.dtype != "i8":
        stored = values.astype(np.float16 if heads.dtype == "f16" else np.float32)
        stored[np.broadcast_to(hole[..., None], stored.shape)] = np.nan
        return stored.astype(np.float32), stored.transpose(0, 1, 3, 2) if key else stored
    scale = np.abs(values).max(-1) / np.float32(127)
    q = np.rint(values / scale[..., None]).astype(np.int8)
    values = q * scale[..., None]
    scale = np.where(hole, np.float32(np.nan), scale)
    bytes_ = (q.transpose(0, 1, 3, 2) if key else q).reshape(BLOCKS, heads.kv, -1)
    return values, np.concatenate([bytes_, scale.view(np.int8).reshape(BLOCKS, heads.kv, -1)], axis=-1)


def expected(q: np.ndarray, heads: Heads, rows: Rows, pool: Pool) -> np.ndarray:
    """Attention as it is defined, (n, Hq, dim) in float64."""
    out = np.zeros(q.shape)
    for m, (session, position) in enumerate(rows):
        if position < 0:
            continue
        seen = np.arange(max(0, position + 1 - heads.window) if heads.window else 0, position + 1)
        blocks, columns = pool.table[session, seen // KV_BLOCK], seen % KV_BLOCK
        for head in range(heads.query):
            kv = head // (heads.query // heads.kv)
            scores = pool.keys[blocks, kv, columns].astype(np.float64) @ q[m, head] * heads.scores
            if heads.cap:
                scores = np.tanh(scores / heads.cap) * heads.cap
            weights = np.exp(scores - scores.max())
            out[m, head] = weights @ pool.values[blocks, kv, columns] / weights.sum()
    return out


def made(function: object, gpu: Gpu, folder: Path) -> Shader:
    shader = emit(flat("kernel", function), SCALARS)
    check("kernel", shader.needs, gpu)
    validate(shader.code, "kernel", folder)
    return shader


def compare(gpu_class: str, heads: Heads, rows: Rows, program: Path, folder: Path) -> None:
    gpu, rng, n = CLASSES[gpu_class], np.random.default_rng(len(rows)), len(rows)
    pool = Pool.random(heads, rows, rng)
    q = (2 * rng.standard_normal((n, heads.query, heads.dim))).astype(np.float32)
    splits = splits_for(n, heads, SCHEDULES[gpu.schedule])
    slots = np.array([session for session, _ in rows], np.int32) * np.int32(pool.table.shape[1])
    positions = np.array([position for _, position in rows], np.int32)
    first = made(parts_kernel("kernel", gpu, n, heads, splits), gpu, folder)
    inputs = [q, positions, slots, pool.table, pool.stored_keys, pool.stored_values]
    shape = (n, heads.query, splits, heads.dim + 2)
    (raw,) = run_shader(program, folder, first, inputs, [4 * int(np.prod(shape))])
    parts = np.frombuffer(raw, np.float32).reshape(shape).copy()
    if not SCHEDULES[gpu.schedule].alone:
        parts[parts[..., -1] == 0] = np.nan  # those of no block are nobody's, whatever was there
    second = made(merge_kernel("kernel", gpu, n, heads, splits, None), gpu, folder)
    (raw,) = run_shader(program, folder, second, [parts, positions], [q.nbytes])
    right = expected(q, heads, rows, pool)
    np.testing.assert_allclose(np.frombuffer(raw, np.float32).reshape(q.shape), right, rtol=0, atol=2e-5)


GROUPED, LONE, WIDE = Heads(8, 2, 64, "f16", 0), Heads(3, 3, 96, "f32", 0), Heads(4, 1, 256, "f16", 0)
WINDOW = Heads(6, 2, 32, "f16", 100, cap=20.0)
BYTES = Heads(14, 2, 64, "i8", 0)
EIGHTY, SIXTEEN = Heads(4, 2, 80, "f16", 0), Heads(6, 2, 16, "i8", 50)
"""No whole groups of 32 dimensions, which activations are quantized by."""
MANY = Heads(32, 4, 64, "f16", 0)
"""As many as let those of a KV head share a workgroup for a single row."""
SEVERAL = [*prompt(3, 70), (1, 200), (0, -1), *prompt(2, 130, 2), (3, 64)]
"""Rows of sessions that have one, several or none in a tile, and one that is nobody's."""
LONG = [*prompt(29, 400), (0, -1), (0, -1), (0, -1)]
"""A prompt's end, as a call of 32 rows has it."""
TURNS = [(i % 2, 90 + i // 2) for i in range(16)]


@pytest.mark.parametrize(
    ("gpu_class", "heads", "rows"),
    [
        ("desktop", GROUPED, LONG),
        ("v3d", BYTES, SEVERAL),
        ("desktop", WIDE, [(0, 700)]),
        ("small", WINDOW, [(0, 190)]),
        ("v3d", MANY, [(0, 190)]),
        ("desktop", EIGHTY, LONG),
        ("small", SIXTEEN, [(0, 190)]),
        ("processor", SIXTEEN, SEVERAL),
        *(
            pytest.param(*each, marks=pytest.mark.oracle)
            for each in (
                ("v3d", GROUPED, SEVERAL),
                ("desktop", BYTES, SEVERAL),
                ("small", BYTES, LONG),
                ("small", LONE, SEVERAL),
                ("desktop", LONE, LONG),
                ("v3d", WINDOW, LONG),
                ("desktop", WINDOW, TURNS),
                ("small", WIDE, TURNS),
                ("v3d", BYTES, [(0, 300)]),
                ("desktop", GROUPED, [(0, -1)]),
                ("processor", BYTES, SEVERAL),
                ("processor", EIGHTY, LONG),
                ("v3d", SIXTEEN, SEVERAL),
                ("small", Heads(8, 2, 48, "f32", 0), SEVERAL),
                ("desktop", Heads(4, 4, 112, "f16", 0), LONG),
                ("v3d", EIGHTY, [(0, 700)]),
            )
        ),
    ],
)
def test_attention(gpu_class: str, heads: Heads, rows: Rows, program: Path, tmp_path: Path) -> None:
    compare(gpu_class, heads, rows, program, tmp_path)


CALLS = [(1, 1100), (0, 130), (0, 0), (0, 63), (1, 1000), (0, -1), (0, 64), (1, 190), (0, 130)]
"""One after the other, with the same memory for parts and counters: what one leaves must not disturb the next."""


@pytest.mark.parametrize(
    ("gpu_class", "heads", "form"),
    [
        ("desktop", GROUPED, None),
        ("desktop", BYTES, Form()),
        ("v3d", WINDOW, Form()),
        *(
            pytest.param(*each, marks=pytest.mark.oracle)
            for each in (
                ("small", BYTES, None),
                ("v3d", MANY, Form(shrink=1 / 16)),
                ("desktop", WINDOW, None),
                ("desktop", WIDE, Form()),
                ("small", LONE, Form()),
            )
        ),
    ],
)
def test_one_kernel_computes_what_two_do(
    gpu_class: str, heads: Heads, form: Form | None, program: Path, tmp_path: Path
) -> None:
    """The same bits, where the last workgroup to finish merges what all have left."""
    gpu, rng = replace(CLASSES[gpu_class], buffers=BUFFERS), np.random.default_rng(3)
    pool, columns = Pool.random(heads, CALLS, rng), heads.query * heads.dim
    splits = splits_for(1, heads, SCHEDULES[gpu.schedule])

    functions = (
        clearing_kernel("kernel", gpu, heads),
        whole_kernel("kernel", gpu, heads, splits, form),
        parts_kernel("kernel", gpu, 1, heads, splits),
        merge_kernel("kernel", gpu, 1, heads, splits, form),
    )
    clears, whole, apart, merge = (made(function, gpu, tmp_path) for function in functions)
    q = (2 * rng.standard_normal((len(CALLS), heads.query, heads.dim))).astype(np.float32)
    inputs = {"table": pool.table, "k": pool.stored_keys, "v": pool.stored_values}
    outputs = {"turns": 4 * counters(heads), "left": 4 * heads.query * splits * (heads.dim + 2)}
    results = {"o": 4 * columns} if form is None else {"q": columns, "scale": columns // 8}
    steps: list[tuple[Shader, list[str]]] = [(clears, ["turns"])]
    for i, (session, position) in enumerate(CALLS):
        inputs[f"query{i}"], inputs[f"position{i}"] = q[i], np.array([position], np.int32)
        inputs[f"slot{i}"] = np.array([session * pool.table.shape[1]], np.int32)
        outputs |= {f"{way}_{name}{i}": size for way in ("one", "two") for name, size in results.items()}
        given = [f"query{i}", f"position{i}", f"slot{i}", "table", "k", "v"]
        one, two = ([f"{way}_{name}{i}" for name in results] for way in ("one", "two"))
        steps += [
            (whole, [*given, "turns", "left", *one]),
            (apart, [*given, "left"]),
            (merge, ["left", f"position{i}", *two]),
        ]
    found = run_shaders(program, tmp_path, steps, inputs, outputs)
    assert not any(found["turns"])
    for i, call in enumerate(CALLS):
        for name in results:
            assert found[f"one_{name}{i}"] == found[f"two_{name}{i}"], (call, name)
        right = expected(q[i : i + 1], heads, [call], pool).reshape(-1)
        if form is None:
            value, error = np.frombuffer(found[f"one_o{i}"], np.float32), 2e-5
        else:
            scale = np.frombuffer(found[f"one_scale{i}"], np.float32).repeat(GROUP) / np.float32(form.shrink)
            value, error = np.frombuffer(found[f"one_q{i}"], np.int8) * scale, 2e-5 + 0.501 * scale.max()
        np.testing.assert_allclose(value, right, rtol=0, atol=error)


@pytest.mark.parametrize("name", [name for name, schedule in SCHEDULES.items() if not schedule.alone])
def test_tiles_fit_the_floor(name: str) -> None:
    """Whatever the heads: shared memory, threads, and 32 sums of each thread."""
    gpu = Gpu(schedule=name)
    for dim in range(32, 257, 32):
        for per_kv in (1, 4, 7, 8, 71):
            heads = Heads(2 * per_kv, 2, dim, "i8", 0)
            for n in (8, 128):
                tile = Tile.choose(n, heads, SCHEDULES[name])
                assert tile.rows * tile.heads <= tile.slots <= max(8, 4096 // dim)
            for n in (1, 8, 128) if per_kv in (1, 8) and dim in (64, 128, 256) else ():
                shader = emit(flat("kernel", parts_kernel("kernel", gpu, n, heads, 2)), SCALARS)
                check("kernel", shader.needs, gpu)
