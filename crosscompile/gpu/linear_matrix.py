"""The quantized linear layer of many rows on matrix units: tiles of f16 in shared memory, sums in f32.

A row of the activation is divided by a power of two near its largest scale, and its results are multiplied by it, so
that f16 neither overflows nor loses what matters. A group's 32 columns lie in another order than in memory, the same
one for weights and activations: of each word, bytes 0 and 2, then 1 and 3.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from crosscompile.arithmetic import Expr
from crosscompile.gpu.build import Builder, f32, i32, lane, quotient, remainder
from crosscompile.gpu.knobs import LinearKnobs, matrix_groups, matrix_split, matrix_stride
from crosscompile.gpu.linear import Linear, Output
from crosscompile.gpu.weights import Group, Weights, u32
from crosscompile.packing import GROUP

_BYTES = 0x00FF00FF
_OFFSET = 0x64806480
"""A signed byte with these bits changed is, as f16, 1152 more than the byte."""
_BIAS = -1152.0
_BIASES = 0xE480E480
"""_BIAS twice, as f16."""
_ROOM = 6 << 23
"""Of a row's largest scale, by which power of two it may exceed 1: 127 · 2⁷ is far below f16's largest."""
_LEAST = 0x08000000
"""Exponent that a row's scale has at least: those of zeros are 0."""
_ROWS, _PARTS = 8, 4
"""Scales that a thread has on their way together, before anything else: rows, and of each row."""


def quantized_matrices(k: Builder, work: Linear, knobs: LinearKnobs) -> None:
    """(a, scale_a, w, scale_w[, high_w | zero_w], then the addends) -> y."""
    blocks = work.columns // GROUP
    a = k.quads("a", work.n * work.columns)
    scale_a = k.buffer("scale_a", (work.n * blocks,), "float32")
    w = Weights(k, work.rows, work.columns, work.packing)
    out = Output(k, work)
    tile = _Tile(k, work, knobs, a, scale_a, w)
    with k.launch((-(-work.rows // knobs.rows), -(-work.n // knobs.tile)), knobs.threads) as (at_r, at_m, thread):
        tile.compute(thread, k.bind(at_m * knobs.tile), k.bind(at_r * knobs.rows))
        if work.n % knobs.tile == 0 and work.rows % knobs.rows == 0 and not any(work.addends):
            tile.write_whole(thread, out)
        else:
            tile.write(thread, out)


class _Tile:
    """What a workgroup computes: `tile` rows of the activation by `rows` of the weight, each subgroup a part."""

    def __init__(self, k: Builder, work: Linear, knobs: LinearKnobs, a: Any, scale_a: Any, w: Weights) -> None:
        self.k, self.work, self.knobs, self.a, self.scale_a, self.w = k, work, knobs, a, scale_a, w
        self.edge, self.blocks = k.gpu.matrix, work.columns // GROUP
        self.groups = matrix_groups(work, knobs, k.gpu)
        self.stride = matrix_stride(self.groups)
        self.down, self.across = matrix_split(knobs, k.gpu)
        self.per_m, self.per_r = knobs.tile // self.down // self.edge, knobs.rows // self.across // self.edge
        self.a_tile = k.shared(knobs.tile * self.stride, "uint32x4")
        self.w_tile = k.shared(knobs.rows * self.stride, "uint32x4")
        self.stage = k.shared(self.down * self.across * self.edge**2)
        self.row_up, self.row_down = k.shared(knobs.tile), k.shared(knobs.tile)
        # on their way from memory while the tiles before them are multiplied
        self.a_turns = -(-knobs.tile * 2 * self.groups // knobs.threads)
        self.w_turns = -(-knobs.rows * self.groups // knobs.threads)
        self.a_words, self.a_scales = k.local(4 * self.a_turns, "uint32"), k.local(self.a_turns)
        self.w_words = k.local(w.n_words * self.w_turns, "uint32")
        self.w_scales, self.w_shifts = k.local(self.w_turns), k.local(self.w_turns, "int32")

    def compute(self, thread: Expr, first_m: Expr, first_row: Expr) -> None:
        """The sums, in matrices c0, c1, …"""
        k = self.k
        self.first_m, self.first_row = first_m, first_row
        self.subgroup = k.bind(tirx.call_extern("int32", "ellm.subgroup_index"))
        self.my_m = k.bind(quotient(self.subgroup, self.across) * (self.per_m * self.edge))
        self.my_r = k.bind(remainder(self.subgroup, self.across) * (self.per_r * self.edge))
        self._scale_rows()
        for i in range(self.per_m * self.per_r):
            k.matrix_clear(f"c{i}")
        self._fetch(thread, i32(0))
        steps = self.blocks // self.groups
        with k.loop(0, steps) as step:
            self._unpack(thread)
            k.barrier()
            self._fetch(thread, k.bind(tirx.Min(step + 1, i32(steps - 1)) * self.groups))
            self._multiply()
            k.barrier()

    def write_whole(self, thread: Expr, out: Output) -> None:
        """The sums to the result, as matrices: no element lies outside, and addends have the result's shape."""
        k, edge, whole, sums = self.k, self.edge, self.work.whole, self.per_m * self.per_r
        by, area, mine = f"c{sums}", edge**2, self.knobs.threads * edge**2 // self.k.gpu.subgroup
        for i in range(self.per_m):
            with k.strided(thread, mine) as at:
                row = quotient(quotient(at, area), self.across) * (self.per_m * edge) + i * edge
                k.store(self.stage, self.row_up[row + quotient(remainder(at, area), edge)], at)
            k.barrier()
            k.matrix_load(by, self.stage, self.subgroup * area, edge)
            m = k.bind(self.first_m + self.my_m + i * edge)
            for j in range(self.per_r):
                row, c = k.bind(self.first_row + self.work.first + self.my_r + j * edge), f"c{i * self.per_r + j}"
                k.matrix_times(c, by)
                for more, addend in enumerate(out.addends):
                    k.matrix_load(f"c{sums + 1 + more}", addend, (m, row), whole)
                    k.matrix_plus(c, f"c{sums + 1 + more}")
                k.matrix_store(c, out.y, (m, row), whole)
            k.barrier()

    def write(self, thread: Expr, out: Output) -> None:
        """The sums to the result, a matrix of each subgroup at a time."""
        k, edge, area = self.k, self.edge, self.edge**2
        size = self.down * self.across * area
        for i in range(self.per_m * self.per_r):
            k.matrix_store(f"c{i}", self.stage, self.subgroup * area, edge)
            k.barrier()
            with k.strided(thread, size) as at:
                whose, place = k.bind(quotient(at, area)), k.bind(remainder(at, area))
                m = quotient(whose, self.across) * self.per_m + i // self.per_r
                r = remainder(whose, self.across) * self.per_r + i % self.per_r
                m = k.bind(m * edge + quotient(place, edge))
                row = k.bind(self.first_row + r * edge + remainder(place, edge))
                with k.when(tirx.And(self.first_m + m < i32(self.work.n), row < i32(self.work.rows))):
                    out.write(k.bind(self.first_m + m), row, self.stage[at] * self.row_up[m])
            k.barrier()

    def _scale_rows(self) -> None:
        """What each row of the activation is divided by, and its results multiplied."""
        k, size, subgroups = self.k, self.k.gpu.subgroup, self.down * self.across
        at = k.bind(tirx.call_extern("int32", "ellm.subgroup_lane"))
        mine = -(-self.knobs.tile // subgroups)
        together, parts = min(mine, _ROWS), -(-self.blocks // size)
        largest = k.local(together)
        with k.loop(0, -(-mine // together)) as turn:
            places = [(turn * together + i) * subgroups + self.subgroup for i in range(together)]
            rows = [k.bind(tirx.Min(place, i32(self.knobs.tile - 1))) for place in places]
            sources = [k.bind(tirx.Min(self.first_m + m, i32(self.work.n - 1)) * self.blocks) for m in rows]
            for i in range(together):
                k.store(largest, f32(0.0), i)
            with k.loop(0, -(-parts // _PARTS)) as some:
                at_once = [(some * min(parts, _PARTS) + part) * size + at for part in range(min(parts, _PARTS))]
                columns = [k.bind(tirx.Min(b, i32(self.blocks - 1))) for b in at_once]
                found = [[k.bind(self.scale_a[source + b]) for b in columns] for source in sources]
                for i, values in enumerate(found):
                    for value in values:
                        k.store(largest, tirx.Max(largest[i], value), i)
            for i, m in enumerate(rows):
                most = k.bind(tirx.call_extern("float32", "ellm.subgroup_max", largest[i]))
                bits = tirx.Max(tirx.reinterpret("uint32", most) & u32(0x7F800000), u32(_LEAST))
                power = k.bind(bits - u32(_ROOM))
                with k.when(tirx.EQ(at, i32(0))):
                    k.store(self.row_up, tirx.reinterpret("float32", power), m)
                    k.store(self.row_down, tirx.reinterpret("float32", u32(0x7F000000) - power), m)
        k.barrier()

    def _tasks(self, thread: Expr, turns: int, count: int) -> Any:
        """(turn, task) of a thread, each under its condition."""
        for turn in range(turns):
            task = self.k.bind(thread + turn * self.knobs.threads)
            if (turn + 1) * self.knobs.threads <= count:
                yield turn, task
            else:
                with self.k.when(task < i32(count)):
                    yield turn, task

    def _a_tasks(self, thread: Expr) -> Any:
        """(turn, row of the tile, quarter of a group: 16 columns)."""
        parts = 2 * self.groups
        for turn, task in self._tasks(thread, self.a_turns, self.knobs.tile * parts):
            yield turn, self.k.bind(quotient(task, parts)), self.k.bind(remainder(task, parts))

    def _w_tasks(self, thread: Expr) -> Any:
        """(turn, row of the tile, group)."""
        groups = self.groups
        for turn, task in self._tasks(thread, self.w_turns, self.knobs.rows * groups):
            yield turn, self.k.bind(quotient(task, groups)), self.k.bind(remainder(task, groups))

    def _fetch(self, thread: Expr, first: Expr) -> None:
        """Asks for the groups of columns from `first` on."""
        k, w = self.k, self.w
        for turn, r, group in self._w_tasks(thread):
            row = k.bind(tirx.Min(self.first_row + r, i32(self.work.rows - 1)))
            (read,) = w.read(row, k.bind(first + group))
            for i, word in enumerate(read.stored()):
                k.store(self.w_words, word, turn * w.n_words + i)
            k.store(self.w_scales, read.scale, turn)
            if read.shift is not None:
                k.store(self.w_shifts, read.shift, turn)
        for turn, m, part in self._a_tasks(thread):
            source = k.bind(tirx.Min(self.first_m + m, i32(self.work.n - 1)))
            b = k.bind(first + quotient(part, 2))
            quad = k.bind(self.a[source * self.blocks * 2 + first * 2 + part])
            for i in range(4):
                k.store(self.a_words, lane(quad, i), turn * 4 + i)
            k.store(self.a_scales, self.scale_a[source * self.blocks + b], turn)

    def _unpack(self, thread: Expr) -> None:
        """What was asked for, as f16 to shared memory."""
        k, w = self.k, self.w
        for turn, r, group in self._w_tasks(thread):
            words = [k.bind(self.w_words[turn * w.n_words + i]) for i in range(w.n_words)]
            shift = k.bind(self.w_shifts[turn]) if w.shifted else None
            read = Group.of(w, words, k.bind(self.w_scales[turn]), shift)
            add, scale = self._bias(shift), k.both_halves(read.scale)
            # codes of kinds with steps are few: their products fit a byte
            words = [word if w.step == 1 else k.bind(word * u32(w.step)) for word in read.words()]
            halves = [self._scaled(half, add, scale) for word in words for half in self._apart(word)]
            self._put(self.w_tile, halves, r * self.stride + group * 4)
        for turn, m, part in self._a_tasks(thread):
            scale = k.both_halves(self.a_scales[turn] * self.row_down[m])
            words = [k.bind(self.a_words[turn * 4 + i]) for i in range(4)]
            halves = [self._scaled(half, u32(_BIASES), scale) for word in words for half in self._apart(word)]
            self._put(self.a_tile, halves, m * self.stride + part * 2)

    def _bias(self, shift: Expr | None) -> Expr:
        """What makes a weight's integer of one that is 1152 too large and not yet shifted."""
        if shift is None:
            return u32(_BIASES)
        return self.k.both_halves(tirx.Cast("float32", shift * i32(self.w.times)) + f32(_BIAS))

    def _scaled(self, half: Expr, add: Expr, scale: Expr) -> Expr:
        return self.k.bind(self.k.times_halves(self.k.add_halves(half, add), scale))

    def _apart(self, word: Expr) -> list[Expr]:
        """Four signed bytes as two words of f16, each 1152 too large."""
        return [self.k.bind((part & u32(_BYTES)) ^ u32(_OFFSET)) for part in (word, word >> u32(8))]

    def _put(self, tile: Any, halves: list[Expr], at: Expr) -> None:
        for i in range(0, len(halves), 4):
            self.k.store(tile, tirx.Shuffle(halves[i : i + 4], [0, 1, 2, 3]), at + i // 4)

    def _multiply(self) -> None:
        """The products of the tiles, of a subgroup's own part."""
        k, edge, stride = self.k, self.edge, self.stride
        for column in range(0, self.groups * GROUP, edge):
            for i in range(self.per_m):
                k.matrix_load(f"a{i}", self.a_tile, (self.my_m + i * edge) * stride + column // 8, stride)
            for j in range(self.per_r):
                k.matrix_load(f"b{j}", self.w_tile, (self.my_r + j * edge) * stride + column // 8, stride)
                for i in range(self.per_m):
                    k.matrix_multiply(f"a{i}", f"b{j}", f"c{i * self.per_r + j}")
