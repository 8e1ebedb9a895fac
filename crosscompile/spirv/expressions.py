"""TIR expressions as SPIR-V. Each is a list of scalars, one a lane: GPUs have no vectors to be kept busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm

from crosscompile.errors import CodegenError
from crosscompile.spirv.code import Code
from crosscompile.spirv.intrinsics import MATH, WORDS, math
from crosscompile.spirv.matrices import Matrices
from crosscompile.spirv.memory import Memory
from crosscompile.spirv.scalars import BINARY, binary, computed, convert, reinterpret, split

NAMED = "ellm.named"
"""An external function that gives its argument (crosscompile/gpu/build.py, Builder.bind)."""


def dtype_of(expr: Any) -> str:
    """TVM's type of an expression, such as float32x4."""
    return str(expr.ty.dtype if hasattr(expr, "ty") and hasattr(expr.ty, "dtype") else expr.dtype)


_CONTROL: dict[str, Callable[[Code], None]] = {
    "tvm_storage_sync": lambda code: code.barrier(),
    "break_loop": lambda code: code.leave(),
    "continue_loop": lambda code: code.next_round(),
    "prefetch": lambda code: None,  # of use to a processor only
    "ellm.fence": lambda code: code.fence(),
}
"""Calls without a value."""


class Expressions:
    """Evaluates expressions; `variables` and `buffers` are what names mean where the code stands."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.variables: dict[Any, list[int]] = {}
        self.buffers: dict[Any, Memory] = {}
        self.matrices = Matrices(code)

    def scalar(self, expr: Any) -> int:
        values = self.value(expr)
        if len(values) != 1:
            raise CodegenError(f"SPIR-V: {expr} is a vector where a scalar is needed")
        return values[0]

    def value(self, expr: Any) -> list[int]:
        """The lanes of an expression, in the computed type of its elements."""
        name = type(expr).__name__
        if name in BINARY:
            base = computed(split(dtype_of(expr.a))[0])
            pairs = zip(self.value(expr.a), self.value(expr.b), strict=True)
            return [binary(self.code, name, base, a, b) for a, b in pairs]
        handler = getattr(self, f"_{name.lower()}", None)
        if handler is None:
            raise CodegenError(f"SPIR-V: expression {name} is not supported: {str(expr)[:80]}")
        result: list[int] = handler(expr)
        return result

    # ---- leaves

    def _var(self, expr: Any) -> list[int]:
        if expr not in self.variables:
            raise CodegenError(f"SPIR-V: variable {expr.name} has no value here")
        return self.variables[expr]

    def _intimm(self, expr: Any) -> list[int]:
        return [self.code.module.constant(computed(dtype_of(expr)), int(expr.value))]

    def _floatimm(self, expr: Any) -> list[int]:
        return [self.code.module.constant(computed(dtype_of(expr)), float(expr.value))]

    def _tensorload(self, expr: Any) -> list[int]:
        memory = self.memory(expr.source)
        return [lane for index in self.place(expr.indices) for lane in memory.load(self.code, index)]

    def memory(self, buffer: Any) -> Memory:
        if buffer not in self.buffers:
            raise CodegenError(f"SPIR-V: buffer {buffer.name} is not declared here")
        return self.buffers[buffer]

    def place(self, indices: Any) -> list[int]:
        """The positions of the elements that an access means."""
        if len(indices) != 1:
            raise CodegenError("SPIR-V: buffers must be flat")
        return self.value(indices[0])

    # ---- lanes

    def _broadcast(self, expr: Any) -> list[int]:
        return self.value(expr.value) * split(dtype_of(expr))[1]

    def _ramp(self, expr: Any) -> list[int]:
        start, stride = self.scalar(expr.base), self.scalar(expr.stride)
        made = [start]
        for lane in range(1, split(dtype_of(expr))[1]):
            by = self.code.module.constant("int32", lane)
            step = binary(self.code, "Mul", "int32", stride, by)
            made.append(binary(self.code, "Add", "int32", start, step))
        return made

    def _shuffle(self, expr: Any) -> list[int]:
        lanes = [lane for vector in expr.vectors for lane in self.value(vector)]
        return [lanes[int(index)] for index in expr.indices]

    # ---- operators

    def _not(self, expr: Any) -> list[int]:
        return [self.code.make(168, self.code.module.type("bool"), value) for value in self.value(expr.a)]

    def _bitwisenot(self, expr: Any) -> list[int]:
        type_ = self.code.module.type(computed(split(dtype_of(expr))[0]))
        return [self.code.make(200, type_, value) for value in self.value(expr.a)]

    def _select(self, expr: Any) -> list[int]:
        conditions, yes, no = (self.value(e) for e in (expr.condition, expr.true_value, expr.false_value))
        conditions = conditions * (len(yes) if len(conditions) == 1 else 1)
        type_ = self.code.module.type(computed(split(dtype_of(expr))[0]))
        return [self.code.make(169, type_, *each) for each in zip(conditions, yes, no, strict=True)]

    def _cast(self, expr: Any) -> list[int]:
        source, target = split(dtype_of(expr.value))[0], split(dtype_of(expr))[0]
        return [convert(self.code, source, target, value) for value in self.value(expr.value)]

    def _let(self, expr: Any) -> list[int]:
        self.variables[expr.var] = self.value(expr.value)
        return self.value(expr.body)

    # ---- calls

    def _call(self, expr: Any) -> list[int]:
        base = split(dtype_of(expr))[0]
        name = expr.op.name.rpartition(".")[2]
        args = list(expr.args)
        if name == "if_then_else":
            return self._guarded(expr, base)
        if name == "reinterpret":
            return reinterpret(self.code, split(dtype_of(args[0]))[0], base, self.value(args[0]))
        if name == "call_llvm_pure_intrin":
            number, *args = args
            name = tvm.get_global_func("target.llvm_get_intrinsic_name")(int(number.value)).removeprefix("llvm.")
        elif name in ("call_pure_extern", "call_extern"):
            first, *args = args
            name = str(first.value)
            if name == NAMED:
                return self.value(args[0])
            if name == "ellm.atomic_add":
                return [self._atomic_add(*args)]
            if name.startswith("ellm.matrix_"):
                self._matrix(name.removeprefix("ellm.matrix_"), args)
                return []
            if name not in WORDS and name not in _CONTROL:
                raise CodegenError(f"SPIR-V: the external function {name} is not supported")
        if name in _CONTROL:
            _CONTROL[name](self.code)
            return []
        if name in WORDS:
            return [WORDS[name](self.code, [self.scalar(argument) for argument in args])]
        if name not in MATH:
            raise CodegenError(f"SPIR-V: the call of {expr.op.name} ({name}) is not supported")
        lanes = zip(*(self.value(argument) for argument in args), strict=True)
        return [math(self.code, name, computed(base), list(each)) for each in lanes]

    def _atomic_add(self, address: Any, value: Any) -> int:
        """address: of an element of a buffer of int32."""
        memory, place = self._reach(address)
        return self.code.atomic_add(memory.pointer(self.code, place), self.scalar(value))

    def _reach(self, address: Any) -> tuple[Memory, int]:
        """The buffer and place of an element whose address it is."""
        element = address.args[0]
        (place,) = self.place(element.indices)
        return self.memory(element.source), place

    def _matrix(self, word: str, args: list[Any]) -> None:
        """One of crosscompile/gpu/build.py's words for matrices."""
        names = [str(arg.value) for arg in args if type(arg).__name__ == "StringImm"]
        if word in ("load", "store"):
            memory, place = self._reach(args[1])
            getattr(self.matrices, word)(*names, memory, place, self.scalar(args[2]))
        else:
            getattr(self.matrices, word)(*names)

    def _guarded(self, expr: Any, base: str) -> list[int]:
        condition, yes, no = expr.args
        types = [self.code.module.type(computed(base))] * split(dtype_of(expr))[1]
        return self.code.choose(types, self.scalar(condition), lambda: self.value(yes), lambda: self.value(no))
