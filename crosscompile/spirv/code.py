"""The body of one function under construction: instructions, labels and structured control flow."""

from __future__ import annotations

from collections.abc import Callable

from crosscompile.spirv.module import FUNCTION, Module

Then = Callable[[], None]

DEVICE = 1
"""The scope of all workgroups."""
ORDERED = 0x48
"""Memory semantics: AcquireRelease | UniformMemory."""


_DONT_UNROLL = 2
"""Of a loop's controls."""


class Code:
    """Instructions of the function. Values are ids; `label` is the block that is being written."""

    def __init__(self, module: Module, edge: int = 0, rolled: bool = False) -> None:
        """edge: rows and columns of the matrices of a subgroup, if there are any. rolled: loops are to stay loops."""
        self.module, self.edge = module, edge
        self._loop_control = _DONT_UNROLL if rolled else 0
        self.words: list[int] = []
        self.variables: list[int] = []
        self.label = 0
        self.loops: list[tuple[int, int]] = []  # (merge, continue) labels, innermost last

    def do(self, opcode: int, *operands: int) -> None:
        """An instruction without a result."""
        self.module.instruction(self.words, opcode, *operands)

    def make(self, opcode: int, type_: int, *operands: int) -> int:
        """An instruction with a result, which is returned."""
        made = self.module.id()
        self.module.instruction(self.words, opcode, type_, made, *operands)
        return made

    def math(self, dtype: str, number: int, *operands: int) -> int:
        """An instruction of GLSL.std.450."""
        return self.make(12, self.module.type(dtype), self.module.math, number, *operands)

    def local(self, type_: int) -> int:
        """A variable of the function."""
        made = self.module.id()
        self.module.instruction(self.variables, 59, self.module.pointer(FUNCTION, type_), made, FUNCTION)
        return made

    def begin(self, label: int) -> None:
        self.do(248, label)
        self.label = label

    def branch(self, to: int) -> None:
        self.do(249, to)

    def when(self, condition: int, then: Then, otherwise: Then | None = None) -> None:
        """if condition: then() else: otherwise()."""
        yes, merge = self.module.id(), self.module.id()
        no = self.module.id() if otherwise is not None else merge
        self.do(247, merge, 0)
        self.do(250, condition, yes, no)
        self.begin(yes)
        then()
        self.branch(merge)
        if otherwise is not None:
            self.begin(no)
            otherwise()
            self.branch(merge)
        self.begin(merge)

    def choose(
        self, types: list[int], condition: int, then: Callable[[], list[int]], otherwise: Callable[[], list[int]]
    ) -> list[int]:
        """then() or otherwise(), of which only one is computed: it may guard a load that must not happen."""
        results: list[tuple[list[int], int]] = []

        def note(values: Callable[[], list[int]]) -> Then:
            return lambda: results.append((values(), self.label))

        self.when(condition, note(then), note(otherwise))
        (a, a_label), (b, b_label) = results
        return [
            self.make(245, type_, first, a_label, second, b_label)
            for type_, first, second in zip(types, a, b, strict=True)
        ]

    def loop(self, condition: Callable[[], int], body: Then, step: Then) -> None:
        """while condition(): body(); step(). `leave` and `next_round` work within the body."""
        head, test, inside, following, merge = (self.module.id() for _ in range(5))
        self.branch(head)
        self.begin(head)
        self.do(246, merge, following, self._loop_control)
        self.branch(test)
        self.begin(test)
        self.do(250, condition(), inside, merge)
        self.begin(inside)
        self.loops.append((merge, following))
        body()
        self.loops.pop()
        self.branch(following)
        self.begin(following)
        step()
        self.branch(head)
        self.begin(merge)

    def leave(self) -> None:
        """break."""
        self._jump(self.loops[-1][0])

    def next_round(self) -> None:
        """continue."""
        self._jump(self.loops[-1][1])

    def _jump(self, to: int) -> None:
        """Goes there always. The open block behind it, which nothing reaches, must still be one of the loop's."""
        rest = self.module.id()
        self.do(247, rest, 0)
        self.do(250, self.module.constant("bool", True), to, rest)
        self.begin(rest)

    def barrier(self) -> None:
        """Waits for the workgroup, and makes its writes to shared memory seen."""
        scope = self.module.constant("uint32", 2)
        self.do(224, scope, scope, self.module.constant("uint32", 0x108))  # AcquireRelease | WorkgroupMemory

    def fence(self) -> None:
        """Orders this thread's accesses to storage buffers, as the whole device sees them."""
        self.do(225, self.module.constant("uint32", DEVICE), self.module.constant("uint32", ORDERED))

    def atomic_add(self, pointer: int, value: int) -> int:
        """Adds to an int32 of a storage buffer, ordered as by `fence`; returns what was there before."""
        scope, semantics = (self.module.constant("uint32", each) for each in (DEVICE, ORDERED))
        return self.make(234, self.module.type("int32"), pointer, scope, semantics, value)
