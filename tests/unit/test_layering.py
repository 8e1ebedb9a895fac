"""The layering of the design: who may import whom."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edgellm", "crosscompile", "ansible_collections")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@functools.cache
def imports(path: Path) -> set[str]:
    """Top-level names that a module imports anywhere in it, type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[0]  # a relative import stays inside it
            found.add(package if node.level else (node.module or "").partition(".")[0])
    return found


def importers(name: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in SOURCES if name in imports(path)}


def test_there_is_something_to_check():
    assert "edgellm/boards.py" in importers("crosscompile")


def test_only_crosscompile_and_the_rpc_client_import_tvm():
    outside = {path for path in importers("tvm") | importers("tvm_ffi") if not path.startswith("crosscompile/")}
    assert outside == {"edgellm/rpc_client.py"}


def test_only_ssh_imports_paramiko():
    assert {path for path in importers("paramiko") if not path.startswith("edgellm/ssh")} == set()


def test_crosscompile_knows_nothing_of_edgellm():
    assert {path for path in importers("edgellm") if path.startswith("crosscompile/")} == set()


@pytest.mark.parametrize("name", ["rich", "argparse", "requests", "urllib", "http", "huggingface_hub", "socket"])
def test_crosscompile_has_no_network_and_no_terminal(name):
    # crosscompile/runtime.py is also a command that a Makefile runs, so it may read arguments.
    allowed = {"crosscompile/runtime.py"} if name == "argparse" else set()
    assert {path for path in importers(name) if path.startswith("crosscompile/")} <= allowed


def test_boards_holds_no_python():
    assert not list((ROOT / "boards").rglob("*.py"))
