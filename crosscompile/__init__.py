"""Compile language models for small boards: arguments in, values or files out. No network, no terminal.

`compile_model(config, target, scheme)` is the line; importing this package does not import TVM, calling it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosscompile.compiled import CompiledModel, Parameter
    from crosscompile.models.architecture import SCHEMES, Architecture, Network, Scheme, scheme_for
    from crosscompile.program import compile_model

__all__ = [
    "SCHEMES",
    "Architecture",
    "CompiledModel",
    "Network",
    "Parameter",
    "Scheme",
    "compile_model",
    "scheme_for",
]

_HOME = {
    "Architecture": "crosscompile.models.architecture",
    "Network": "crosscompile.models.architecture",
    "SCHEMES": "crosscompile.models.architecture",
    "Scheme": "crosscompile.models.architecture",
    "scheme_for": "crosscompile.models.architecture",
    "CompiledModel": "crosscompile.compiled",
    "Parameter": "crosscompile.compiled",
    "compile_model": "crosscompile.program",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
