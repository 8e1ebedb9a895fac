"""A flat TIR function with thread axes -> one SPIR-V module."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.buffer import is_buffer_var

from crosscompile.errors import CodegenError
from crosscompile.spirv.capabilities import Needs
from crosscompile.spirv.code import Code
from crosscompile.spirv.matrices import MATRIX_EDGE
from crosscompile.spirv.memory import Memory
from crosscompile.spirv.module import PUSH_CONSTANT, Module
from crosscompile.spirv.packed import bound
from crosscompile.spirv.scalars import split
from crosscompile.spirv.statements import Statements

COHERENT = "ellm.coherent"
"""Attribute of a function: names of buffers in which its workgroups see what others write."""


@dataclass(frozen=True)
class Shader:
    """A kernel for Vulkan.

    code     a SPIR-V 1.3 module with the entry point main
    buffers  parameters in the order of their bindings in set 0
    scalars  int32 push constants, in order; grid: workgroups in x, y, z
    """

    code: bytes
    buffers: tuple[str, ...]
    scalars: tuple[str, ...]
    grid: tuple[int, int, int]
    local: tuple[int, int, int]
    needs: Needs


def emit(
    function: tirx.PrimFunc, scalars: tuple[str, ...] = (), rolled: bool = False, packed: Collection[int] = ()
) -> Shader:
    """The SPIR-V of a function whose buffers are flat.

    scalars: symbolic dimensions that it may use, by name; those that it does become push constants, in this order.
    rolled: a driver is asked not to unroll loops, as the schedule has written out what is to be.
    packed: bytes of elements that the GPU cannot access by themselves (Gpu.packed).
    CodegenError for a node that is not supported.
    """
    name = str(function.attrs["global_symbol"])
    edge = int(function.attrs.get(MATRIX_EDGE, 0))
    module = Module(ordered=edge > 0, packed=packed)
    code = Code(module, edge, rolled)
    statements = Statements(code)
    buffers = [parameter for parameter in function.params if is_buffer_var(parameter)]
    if len(buffers) != len(function.params):
        raise CodegenError(f"SPIR-V: kernel {name} has parameters that are no buffers")
    coherent = coherent_buffers(function)
    written = _written(function.body, buffers) | coherent
    parameters: dict[Any, Memory] = {}
    for binding, buffer in enumerate(buffers):
        dtype, lanes = split(str(buffer.ty.dtype))
        parameters[buffer] = bound(module, binding, dtype, lanes, buffer.name in written, buffer.name in coherent)
    used = used_scalars(function, buffers, scalars)
    if used:
        _read_scalars(code, statements, used)
    statements.declare(parameters)
    try:
        statements.write(function.body)
    except CodegenError as error:
        raise CodegenError(f"kernel {name}: {error}") from error
    local, grid = statements.local, statements.grid
    binary = module.assemble((local[0], local[1], local[2]), code.variables, code.words)
    needs = Needs(
        tuple(module.capabilities),
        local[0] * local[1] * local[2],
        statements.shared_bytes,
        len(buffers),
        4 * len(used),
    )
    return Shader(
        binary,
        tuple(buffer.name for buffer in buffers),
        tuple(variable.name for variable in used),
        (grid[0], grid[1], grid[2]),
        (local[0], local[1], local[2]),
        needs,
    )


def coherent_buffers(function: tirx.PrimFunc) -> set[str]:
    """Names of the parameters by which workgroups of a function exchange something."""
    return {str(name) for name in function.attrs.get(COHERENT, ())}


def _written(body: Any, buffers: list[Any]) -> set[str]:
    """Names of the parameters that a function stores to, directly or through a view."""
    owner: dict[Any, Any] = {buffer: buffer for buffer in buffers}
    names = set()
    for node in _statements(body):
        if isinstance(node, tirx.DeclBuffer):
            source = node.data.args[0] if type(node.data).__name__ == "Call" else node.data
            if source in owner:
                owner[node.buffer] = owner[source]
        elif isinstance(node, tirx.BufferStore) and node.buffer in owner:
            names.add(owner[node.buffer].name)
    return names


def _statements(node: Any) -> Iterator[Any]:
    """A statement and all those in it, in order."""
    yield node
    children = [*getattr(node, "seq", ()), *(getattr(node, name, None) for name in ("body", "then_case", "else_case"))]
    for child in children:
        if isinstance(child, tirx.Stmt):
            yield from _statements(child)


def used_scalars(function: tirx.PrimFunc, buffers: list[Any], scalars: tuple[str, ...]) -> list[Any]:
    """Symbolic dimensions of the buffers that the body uses."""
    used = {var.name: var for var in tirx.analysis.undefined_vars(function.body, buffers)}
    unknown = sorted(set(used) - set(scalars))
    if unknown:
        raise CodegenError(f"SPIR-V: kernel {function.attrs['global_symbol']} uses {', '.join(unknown)}, unknown here")
    return [used[name] for name in scalars if name in used]


def _read_scalars(code: Code, statements: Statements, used: list[Any]) -> None:
    module = code.module
    block = module.push_constants(len(used))
    pointer = module.pointer(PUSH_CONSTANT, module.type("int32"))
    for i, variable in enumerate(used):
        place = code.make(65, pointer, block, module.constant("int32", i))
        statements.expressions.variables[variable] = [code.make(61, module.type("int32"), place)]
