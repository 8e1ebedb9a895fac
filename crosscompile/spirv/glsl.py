"""A flat TIR function with thread axes as Vulkan GLSL: to be read, and as a second way to SPIR-V in differential tests.

Nothing that ships goes this way. Lanes are scalars and values are computed in 32 bits, as in the modules (scalars.py);
`precise` keeps products and sums apart, as NoContraction does there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.tirx.buffer import is_buffer_var

from crosscompile.errors import CodegenError
from crosscompile.spirv import glsl_matrices
from crosscompile.spirv.emit import coherent_buffers, used_scalars
from crosscompile.spirv.expressions import NAMED, dtype_of
from crosscompile.spirv.matrices import MATRIX_EDGE
from crosscompile.spirv.memory import stored_lanes
from crosscompile.spirv.scalars import computed, split

_NAMES = {"float32": "float", "int32": "int", "uint32": "uint", "bool": "bool"}
_STORED = {"float16": "float16_t", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t"}
_VECTORS = {"float": "vec", "int": "ivec", "uint": "uvec", "float16_t": "f16vec", "int8_t": "i8vec", "uint8_t": "u8vec"}
_OPERATORS = dict(
    [("Add", "+"), ("Sub", "-"), ("Mul", "*"), ("Div", "/"), ("And", "&&"), ("Or", "||"), ("EQ", "=="), ("NE", "!=")]
    + [("LT", "<"), ("LE", "<="), ("GT", ">"), ("GE", ">="), ("BitwiseAnd", "&"), ("BitwiseOr", "|")]
    + [("BitwiseXor", "^"), ("LShift", "<<"), ("RShift", ">>")]
)
_MATH = {"rsqrt": "inversesqrt", "fabs": "abs", "nearbyint": "roundEven"} | {
    name: name
    for name in (
        "exp",
        "log",
        "exp2",
        "log2",
        "sqrt",
        "pow",
        "sin",
        "cos",
        "tan",
        "tanh",
        "floor",
        "ceil",
        "trunc",
        "fma",
    )
}
_WORDS = {
    "ellm.subgroup_sum": "subgroupAdd({})",
    "ellm.subgroup_max": "subgroupMax({})",
    "ellm.subgroup_index": "int(gl_SubgroupID)",
    "ellm.subgroup_count": "int(gl_NumSubgroups)",
    "ellm.subgroup_lane": "int(gl_SubgroupInvocationID)",
    "ellm.dot4": "dot4({}, {})",
    "ellm.dot4_mixed": "dot4_mixed({}, {})",
    "ellm.half_low": "unpackHalf2x16({}).x",
    "ellm.half_high": "unpackHalf2x16({}).y",
} | glsl_matrices.WORDS
_FENCE = "memoryBarrierBuffer();"
_CONTROL = {
    "tvm_storage_sync": ["barrier();"],
    "break_loop": ["break;"],
    "continue_loop": ["continue;"],
    "prefetch": [],
    "ellm.fence": [_FENCE],
}
_BITS = {
    ("float32", "int32"): "floatBitsToInt({})",
    ("float32", "uint32"): "floatBitsToUint({})",
    ("int32", "float32"): "intBitsToFloat({})",
    ("uint32", "float32"): "uintBitsToFloat({})",
    ("int32", "uint32"): "uint({})",
    ("uint32", "int32"): "int({})",
}
_HEAD = """\
#version 450
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_8bit_storage : require
"""
_SUBGROUPS = "#extension GL_KHR_shader_subgroup_arithmetic : require\n"
_FUNCTIONS = """
// The remainder, the quotient rounded down and its remainder: GLSL leaves % of negative numbers open.
int trunc_mod(int a, int b) { return a - (a / b) * b; }
int floor_div(int a, int b) { int q = a / b, r = a - q * b; return q - ((r != 0 && (r ^ b) < 0) ? 1 : 0); }
int floor_mod(int a, int b) { int r = trunc_mod(a, b); return r + ((r != 0 && (r ^ b) < 0) ? b : 0); }
int byte_of(uint w, int i) { return int(w << (24 - 8 * i)) >> 24; }
int dot4(uint a, uint b) {
    return byte_of(a, 0) * byte_of(b, 0) + byte_of(a, 1) * byte_of(b, 1) + byte_of(a, 2) * byte_of(b, 2)
        + byte_of(a, 3) * byte_of(b, 3);
}
int dot4_mixed(uint a, uint b) { return dot4(a, b ^ 0x80808080u) + 128 * dot4(a, 0x01010101u); }
"""


def print_glsl(function: tirx.PrimFunc, scalars: tuple[str, ...] = ()) -> str:
    """The GLSL of a function that `emit` takes. CodegenError for a node that is not supported."""
    try:
        return _Printer().print(function, scalars)
    except CodegenError as error:
        raise CodegenError(f"kernel {function.attrs['global_symbol']}: {error}") from error


def _type_of(dtype: str) -> str:
    return _NAMES[computed(split(dtype)[0])]


class _Printer:
    """One kernel. values: what variables are, lane by lane; arrays: a buffer's name, element type and lanes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1
        self.names: set[str] = set()
        self.values: dict[Any, list[str]] = {}
        self.arrays: dict[Any, tuple[str, str, int]] = {}
        self.shared: list[str] = []
        self.local = [1, 1, 1]
        self.matrices: dict[str, None] = {}
        self.edge = 0

    def print(self, function: tirx.PrimFunc, scalars: tuple[str, ...]) -> str:
        buffers = [parameter for parameter in function.params if is_buffer_var(parameter)]
        head, coherent = [], coherent_buffers(function)
        for binding, buffer in enumerate(buffers):
            base, lanes = split(str(buffer.ty.dtype))
            name = self.name(buffer.name)
            self.arrays[buffer] = name, base, lanes
            element = self.element(base, lanes)
            kind = "coherent buffer" if buffer.name in coherent else "buffer"
            head.append(f"layout(set = 0, binding = {binding}, std430) {kind} B{binding} {{ {element} {name}[]; }};")
        used = used_scalars(function, buffers, scalars)
        for variable in used:
            self.values[variable] = [self.name(variable.name)]
        if used:
            fields = " ".join(f"int {self.values[variable][0]};" for variable in used)
            head.append(f"layout(push_constant) uniform Scalars {{ {fields} }};")
        self.edge = int(function.attrs.get(MATRIX_EDGE, 0))
        self.statement(function.body)
        x, y, z = self.local
        size = f"layout(local_size_x = {x}, local_size_y = {y}, local_size_z = {z}) in;"
        body = "\n".join(self.lines)
        extensions = _HEAD + (_SUBGROUPS if "ubgroup" in body else "")
        extensions += glsl_matrices.EXTENSIONS if self.edge else ""
        start = ["void main() {", *(f"    {each}" for each in glsl_matrices.declarations(self.matrices, self.edge))]
        return "\n".join((extensions + size, *head, *self.shared, _FUNCTIONS, *start, body, "}", ""))

    # ---- words

    def name(self, wanted: str) -> str:
        base = re.sub(r"_+", "_", re.sub(r"\W", "_", wanted)).strip("_") or "v"
        base = f"{base}_" if base[0].isdigit() or base in ("in", "out", "shared", "buffer", "float16", "half") else base
        made, count = f"{base}0" if base.endswith("_") else base, 0
        while made in self.names or made in _NAMES.values() or made in ("float32", "int8", "row"):
            count += 1
            made = f"{base.rstrip('_')}{count}"
        self.names.add(made)
        return made

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        self.line(f"{head} {{")
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    def keep(self, dtype: str, value: str, wanted: str = "t") -> str:
        """A new variable that holds a value."""
        name = self.name(wanted)
        self.line(f"{'precise ' if _type_of(dtype) == 'float' else ''}{_type_of(dtype)} {name} = {value};")
        return name

    def element(self, base: str, lanes: int) -> str:
        scalar = _STORED.get(base) or _NAMES[computed(base)]
        return f"{_VECTORS[scalar]}{lanes}" if stored_lanes(lanes) > 1 else scalar

    # ---- statements

    def statement(self, node: Any) -> None:
        kind = type(node).__name__
        handler = getattr(self, f"_do_{kind.lower()}", None)
        if handler is None:
            raise CodegenError(f"GLSL: statement {kind} is not supported")
        handler(node)

    def _do_seqstmt(self, node: Any) -> None:
        for each in node.seq:
            self.statement(each)

    def _do_evaluate(self, node: Any) -> None:
        if type(node.value).__name__ == "Call":
            self.value(node.value)

    def _do_bind(self, node: Any) -> None:
        dtype = dtype_of(node.var)
        self.values[node.var] = [self.keep(dtype, lane, node.var.name) for lane in self.value(node.value)]

    def _do_assertstmt(self, node: Any) -> None:
        """As in statements.py."""

    def _do_declbuffer(self, node: Any) -> None:
        source = node.data.args[0] if type(node.data).__name__ == "Call" else node.data
        self.arrays[node.buffer] = self.arrays[source]

    def _do_allocbuffer(self, node: Any) -> None:
        buffer = node.buffer
        base, lanes = split(str(buffer.dtype))
        size = int(np.prod([int(extent) for extent in buffer.shape])) * lanes // stored_lanes(lanes)
        base = computed(base)
        name = self.name(buffer.name)
        self.arrays[buffer] = name, base, lanes
        declared = f"{self.element(base, lanes)} {name}[{size}];"
        if buffer.scope().startswith("shared"):
            self.shared.append(f"shared {declared}")
        else:
            self.line(declared)

    def _do_attrstmt(self, node: Any) -> None:
        if node.attr_key == "thread_extent":
            tag = str(node.node.thread_tag)
            dimension = tag[-1]
            if tag.startswith("thread"):
                self.local["xyz".index(dimension)] = int(node.value)
            source = "gl_LocalInvocationID" if tag.startswith("thread") else "gl_WorkGroupID"
            self.values[node.node.var] = [self.keep("int32", f"int({source}.{dimension})", node.node.var.name)]
        self.statement(node.body)

    def _do_for(self, node: Any) -> None:
        dtype = dtype_of(node.loop_var)
        first = self.scalar(node.min)
        end = self.keep(dtype, f"{first} + {self.scalar(node.extent)}", "end")
        name = self.name(node.loop_var.name)
        self.values[node.loop_var] = [name]
        with self.block(f"for ({_type_of(dtype)} {name} = {first}; {name} < {end}; {name}++)"):
            self.statement(node.body)

    def _do_while(self, node: Any) -> None:
        with self.block("while (true)"):
            self.line(f"if (!({self.scalar(node.condition)})) break;")
            self.statement(node.body)

    def _do_break(self, node: Any) -> None:
        self.line("break;")

    def _do_continue(self, node: Any) -> None:
        self.line("continue;")

    def _do_ifthenelse(self, node: Any) -> None:
        with self.block(f"if ({self.scalar(node.condition)})"):
            self.statement(node.then_case)
        if node.else_case is not None:
            with self.block("else"):
                self.statement(node.else_case)

    def _do_bufferstore(self, node: Any) -> None:
        name, base, lanes = self.arrays[node.buffer]
        places, values = self.value(node.indices[0]), self.value(node.value)
        values = values * (len(places) * lanes) if len(values) == 1 else values
        values = [self.keep(base, value) for value in values]  # read before anything is written, and precise
        scalar = _STORED.get(base) or _NAMES[computed(base)]
        for i, place in enumerate(places):
            parts = [f"{scalar}({value})" for value in values[i * lanes : (i + 1) * lanes]]
            if stored_lanes(lanes) == 1:
                for lane, part in enumerate(parts):
                    self.line(f"{name}[{self._lane_place(place, lanes, lane)}] = {part};")
            else:
                self.line(f"{name}[{place}] = {self.element(base, lanes)}({', '.join(parts)});")

    @staticmethod
    def _lane_place(place: str, lanes: int, lane: int) -> str:
        return place if lanes == 1 else f"{place} * {lanes} + {lane}"

    # ---- expressions

    def scalar(self, node: Any) -> str:
        (only,) = self.value(node)
        return only

    def value(self, node: Any) -> list[str]:
        """The lanes of an expression."""
        kind = type(node).__name__
        handler = getattr(self, f"_{kind.lower()}", None)
        if handler is not None:
            made: list[str] = handler(node)
            return made
        if not hasattr(node, "a") or not hasattr(node, "b"):
            raise CodegenError(f"GLSL: expression {kind} is not supported")
        base = computed(split(dtype_of(node.a))[0])
        return [self._binary(kind, base, a, b) for a, b in zip(self.value(node.a), self.value(node.b), strict=True)]

    def _binary(self, kind: str, base: str, a: str, b: str) -> str:
        if kind in ("Min", "Max"):
            return f"{kind.lower()}({a}, {b})"
        if kind in ("Mod", "FloorMod", "FloorDiv"):
            if base == "int32":
                return f"{ {'Mod': 'trunc_mod', 'FloorMod': 'floor_mod', 'FloorDiv': 'floor_div'}[kind] }({a}, {b})"
            if base == "uint32":
                return f"({a} {'/' if kind == 'FloorDiv' else '%'} {b})"
        if kind not in _OPERATORS or (kind == "Mod" and base == "float32"):
            raise CodegenError(f"GLSL: operator {kind} on {base} is not supported")
        return f"({a} {_OPERATORS[kind]} {b})"

    def _var(self, node: Any) -> list[str]:
        return self.values[node]

    def _intimm(self, node: Any) -> list[str]:
        base, value = computed(dtype_of(node)), int(node.value)
        if base == "bool":
            return ["true" if value else "false"]
        return [f"{value}u" if base == "uint32" else "(-2147483647 - 1)" if value == -(1 << 31) else f"({value})"]

    def _floatimm(self, node: Any) -> list[str]:
        return [f"uintBitsToFloat(0x{np.float32(node.value).view(np.uint32):08x}u) /* {float(node.value):.9g} */"]

    def _tensorload(self, node: Any) -> list[str]:
        name, base, lanes = self.arrays[node.source]
        type_, made = _NAMES[computed(base)], []
        for place in self.value(node.indices[0]):
            for lane in range(lanes):
                if stored_lanes(lanes) == 1:
                    made.append(f"{type_}({name}[{self._lane_place(place, lanes, lane)}])")
                else:
                    made.append(f"{type_}({name}[{place}].{'xyzw'[lane]})")
        return made

    def _broadcast(self, node: Any) -> list[str]:
        return self.value(node.value) * split(dtype_of(node))[1]

    def _ramp(self, node: Any) -> list[str]:
        start, stride = self.scalar(node.base), self.scalar(node.stride)
        return [f"({start} + {lane} * {stride})" for lane in range(split(dtype_of(node))[1])]

    def _shuffle(self, node: Any) -> list[str]:
        lanes = [lane for vector in node.vectors for lane in self.value(vector)]
        return [lanes[int(index)] for index in node.indices]

    def _not(self, node: Any) -> list[str]:
        return [f"(!{value})" for value in self.value(node.a)]

    def _bitwisenot(self, node: Any) -> list[str]:
        return [f"(~{value})" for value in self.value(node.a)]

    def _select(self, node: Any) -> list[str]:
        conditions, yes, no = (self.value(each) for each in (node.condition, node.true_value, node.false_value))
        conditions = conditions * (len(yes) if len(conditions) == 1 else 1)
        return [f"({c} ? {a} : {b})" for c, a, b in zip(conditions, yes, no, strict=True)]

    def _let(self, node: Any) -> list[str]:
        self.values[node.var] = [self.keep(dtype_of(node.var), lane, node.var.name) for lane in self.value(node.value)]
        return self.value(node.body)

    def _cast(self, node: Any) -> list[str]:
        target = split(dtype_of(node))[0]
        if target == "bool":
            source = _NAMES[computed(split(dtype_of(node.value))[0])]
            return [f"({value} != {source}(0))" for value in self.value(node.value)]
        made = [f"{_NAMES[computed(target)]}({value})" for value in self.value(node.value)]
        shift = {"int8": 24, "uint8": 24, "int16": 16, "uint16": 16}.get(target)
        if shift is not None:
            return [f"(({value} << {shift}) >> {shift})" for value in made]
        return [f"float(float16_t({value}))" for value in made] if target == "float16" else made

    def _call(self, node: Any) -> list[str]:
        name, args = node.op.name.rpartition(".")[2], list(node.args)
        if name == "if_then_else":
            return self._guarded(node)
        if name == "reinterpret":
            return self._reinterpret(node)
        if name == "call_llvm_pure_intrin":
            name = tvm.get_global_func("target.llvm_get_intrinsic_name")(int(args[0].value)).removeprefix("llvm.")
            args = args[1:]
        elif name in ("call_pure_extern", "call_extern"):
            name, args = str(args[0].value), args[1:]
        if name == NAMED:
            return self.value(args[0])
        if name == "ellm.atomic_add":
            return [self._atomic_add(*args)]
        if name.startswith("ellm.matrix_"):
            self._matrix(name.removeprefix("ellm.matrix_"), args)
            return []
        if name in _CONTROL:
            self.lines += ["    " * self.depth + line for line in _CONTROL[name]]
            return []
        if name in _WORDS:
            return [_WORDS[name].format(*(self.scalar(each) for each in args))]
        if name not in _MATH:
            raise CodegenError(f"GLSL: the call of {node.op.name} ({name}) is not supported")
        lanes = zip(*(self.value(each) for each in args), strict=True)
        return [f"{_MATH[name]}({', '.join(lane)})" for lane in lanes]

    def _atomic_add(self, address: Any, value: Any) -> str:
        element = address.args[0]
        place = f"{self.arrays[element.source][0]}[{self.scalar(element.indices[0])}]"
        by = self.scalar(value)
        self.line(_FENCE)
        before = self.keep("int32", f"atomicAdd({place}, {by})", "before")
        self.line(_FENCE)
        return before

    def _matrix(self, word: str, args: list[Any]) -> None:
        names = [str(arg.value) for arg in args if type(arg).__name__ == "StringImm"]
        self.matrices.update(dict.fromkeys(names))
        place: tuple[str, ...] = ()
        if word in ("load", "store"):
            element = args[1].args[0]
            place = self.arrays[element.source][0], self.scalar(element.indices[0]), self.scalar(args[2])
        self.line(glsl_matrices.statement(word, names, place, self.edge))

    def _guarded(self, node: Any) -> list[str]:
        """A branch, for what is not taken may not be evaluated: it may lie outside of its buffer."""
        condition, yes, no = node.args
        dtype = dtype_of(node)
        names = [self.name("chosen") for _ in range(split(dtype)[1])]
        for name in names:
            self.line(f"{'precise ' if _type_of(dtype) == 'float' else ''}{_type_of(dtype)} {name};")
        for head, branch in ((f"if ({self.scalar(condition)})", yes), ("else", no)):
            with self.block(head):
                for name, value in zip(names, self.value(branch), strict=True):
                    self.line(f"{name} = {value};")
        return names

    def _reinterpret(self, node: Any) -> list[str]:
        source, target = (split(dtype_of(each))[0] for each in (node.args[0], node))
        values = self.value(node.args[0])
        if source == target:
            return values
        if (source, target) in _BITS:
            return [_BITS[source, target].format(value) for value in values]
        if source in ("int8", "uint8") and target in _NAMES:
            words = []
            for start in range(0, len(values), 4):
                parts = enumerate(values[start : start + 4])
                word = " | ".join(f"((uint({value}) & 255u) << {8 * i})" for i, value in parts)
                words.append(f"({word})" if target == "uint32" else _BITS["uint32", target].format(word))
            return words
        if target in ("int8", "uint8") and source in _NAMES:
            type_ = _NAMES[computed(target)]
            words = [value if source == "uint32" else _BITS[source, "uint32"].format(value) for value in values]
            return [f"({type_}({word} << {24 - 8 * i}) >> 24)" for word in words for i in range(4)]
        raise CodegenError(f"GLSL: the bits of {source} as {target} are not supported")
