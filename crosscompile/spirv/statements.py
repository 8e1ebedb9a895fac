"""TIR statements as SPIR-V: structured loops and branches, stores, thread axes, arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crosscompile.errors import CodegenError
from crosscompile.spirv.code import Code
from crosscompile.spirv.expressions import Expressions, dtype_of
from crosscompile.spirv.memory import Memory, stored_lanes
from crosscompile.spirv.module import FUNCTION, WORKGROUP
from crosscompile.spirv.scalars import binary, computed, split

_WORKGROUP_ID, _LOCAL_ID = 26, 27  # built-ins


class Statements:
    """Writes the body of a kernel. What it learns on the way: `local` and `grid` sizes, bytes of shared memory."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.expressions = Expressions(code)
        self.local = [1, 1, 1]
        self.grid = [1, 1, 1]
        self.shared_bytes = 0

    def write(self, statement: Any) -> None:
        handler = getattr(self, f"_{type(statement).__name__.lower()}", None)
        if handler is None:
            name = type(statement).__name__
            raise CodegenError(f"SPIR-V: statement {name} is not supported: {str(statement)[:80]}")
        handler(statement)

    def _seqstmt(self, statement: Any) -> None:
        for each in statement.seq:
            self.write(each)

    def _evaluate(self, statement: Any) -> None:
        if type(statement.value).__name__ == "Call":
            self.expressions.value(statement.value)

    def _bind(self, statement: Any) -> None:
        self.expressions.variables[statement.var] = self.expressions.value(statement.value)

    def _bufferstore(self, statement: Any) -> None:
        memory = self.expressions.memory(statement.buffer)
        places = self.expressions.place(statement.indices)
        values = self.expressions.value(statement.value)
        values = values * (len(places) * memory.lanes) if len(values) == 1 else values
        for i, place in enumerate(places):
            memory.store(self.code, place, values[i * memory.lanes : (i + 1) * memory.lanes])

    # ---- buffers

    def _declbuffer(self, statement: Any) -> None:
        data = statement.data
        known = self.expressions.buffers
        source = data.args[0] if type(data).__name__ == "Call" else data
        if source not in known:
            raise CodegenError(f"SPIR-V: buffer {statement.buffer.name} is a view of nothing that is known")
        memory, (dtype, lanes) = known[source], split(str(statement.buffer.dtype))
        if (memory.dtype, memory.lanes) != (dtype, lanes) and (computed(dtype), lanes) != (memory.dtype, memory.lanes):
            raise CodegenError(f"SPIR-V: buffer {statement.buffer.name} is a view of another type")
        known[statement.buffer] = memory

    def _allocbuffer(self, statement: Any) -> None:
        buffer = statement.buffer
        base, lanes = split(str(buffer.dtype))
        size = 1
        for extent in buffer.shape:
            size *= int(extent)
        dtype, module = computed(base), self.code.module
        width = stored_lanes(lanes)
        element = module.vector(dtype, width) if width > 1 else module.type(dtype)
        array = module.array(element, size * lanes // width)
        if buffer.scope().startswith("shared"):
            self.shared_bytes += 4 * lanes * size
            memory = Memory(module.variable(WORKGROUP, array), dtype, lanes, WORKGROUP)
        else:
            memory = Memory(self.code.local(array), dtype, lanes, FUNCTION)
        self.expressions.buffers[buffer] = memory

    # ---- control flow

    def _attrstmt(self, statement: Any) -> None:
        if statement.attr_key == "thread_extent":
            self._thread(statement.node, int(statement.value))
        self.write(statement.body)

    def _thread(self, axis: Any, extent: int) -> None:
        tag = str(axis.thread_tag)
        if tag[:-2] not in ("threadIdx", "blockIdx") or tag[-1] not in "xyz":
            raise CodegenError(f"SPIR-V: the thread axis {tag} is not supported")
        dimension, is_local = "xyz".index(tag[-1]), tag.startswith("thread")
        (self.local if is_local else self.grid)[dimension] = extent
        module = self.code.module
        variable = module.builtin(_LOCAL_ID if is_local else _WORKGROUP_ID, lanes=3)
        whole = self.code.make(61, module.vector("uint32", 3), variable)
        component = self.code.make(81, module.type("uint32"), whole, dimension)
        self.expressions.variables[axis.var] = [self.code.make(124, module.type("int32"), component)]

    def _for(self, statement: Any) -> None:
        code, dtype = self.code, computed(split(dtype_of(statement.loop_var))[0])
        type_ = code.module.type(dtype)
        first = self.expressions.scalar(statement.min)
        end = binary(code, "Add", dtype, first, self.expressions.scalar(statement.extent))
        counter = code.local(type_)
        code.do(62, counter, first)
        now: list[int] = []

        def go_on() -> int:
            now[:] = [code.make(61, type_, counter)]
            return binary(code, "LT", dtype, now[0], end)

        def body() -> None:
            self.expressions.variables[statement.loop_var] = list(now)
            self.write(statement.body)

        def step() -> None:
            code.do(62, counter, binary(code, "Add", dtype, now[0], code.module.constant(dtype, 1)))

        code.loop(go_on, body, step)

    def _while(self, statement: Any) -> None:
        condition = statement.condition
        self.code.loop(lambda: self.expressions.scalar(condition), lambda: self.write(statement.body), lambda: None)

    def _break(self, statement: Any) -> None:
        self.code.leave()

    def _continue(self, statement: Any) -> None:
        self.code.next_round()

    def _ifthenelse(self, statement: Any) -> None:
        otherwise = statement.else_case
        self.code.when(
            self.expressions.scalar(statement.condition),
            lambda: self.write(statement.then_case),
            None if otherwise is None else lambda: self.write(otherwise),
        )

    def _assertstmt(self, statement: Any) -> None:
        """A shader cannot fail; what kernels assert is checked before they are launched."""

    def declare(self, parameters: Mapping[Any, Memory]) -> None:
        """The kernel's buffers."""
        self.expressions.buffers.update(parameters)
