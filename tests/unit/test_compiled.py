"""What is kept of a compilation: all of it comes back, and what is damaged does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from crosscompile.compiled import CompiledModel, Parameter, from_json, to_json
from crosscompile.pieces import Piece
from edgellm import cache


def test_a_compiled_model_comes_back_as_it_was() -> None:
    whole = Parameter("head", ("lm_head.weight",), (96, 64), "w8.r16.k4", "head")
    sources = ("a", Piece("b", True, ((0, 8), (16, 8)), 0.5, 1.0, True))
    table = np.array([[1.5, -0.0], [np.inf, 1e-45]], np.float32)
    parameters = (
        Parameter("stacked", sources, (24, 64), "w4.r16.k4", "layer-000"),
        Parameter("table", (), table.shape, "vec", "constants", table),
        Parameter(
            "head.1", (Piece("lm_head.weight", ranges=((64, 32),)),), (32, 64), "w8.r16.k4", "head", None, (whole, 64)
        ),
    )
    model = CompiledModel(bytes(range(256)), {"kernels": [{"name": "k"}]}, parameters, {"arena_bytes": 1}, {"n": 2}, {})
    found = from_json(to_json(model))
    for mine, other in zip(model.parameters, found.parameters, strict=True):
        assert [getattr(mine, name) for name in ("name", "sources", "shape", "packing", "shard", "part_of")] == [
            getattr(other, name) for name in ("name", "sources", "shape", "packing", "shard", "part_of")
        ]
    assert found.parameters[1].value is not None
    assert found.parameters[1].value.dtype == table.dtype
    assert found.parameters[1].value.tobytes() == table.tobytes()
    assert (found.kernels, found.plan, found.memory, found.model) == (
        model.kernels,
        model.plan,
        model.memory,
        model.model,
    )
    assert json.loads(to_json(found)) == json.loads(to_json(model))


def test_what_is_damaged_was_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path))
    assert cache.kept("kernels", "k") is None
    cache.keep("kernels", "k", "ä text")
    assert cache.kept("kernels", "k") == "ä text"
    file = tmp_path / "kernels" / "k"
    assert list(file.parent.iterdir()) == [file]
    content = file.read_bytes()
    for wrong in (content[:-1], content + b"x", content[:70], b"", content.replace(b"t", b"T")):
        file.write_bytes(wrong)
        assert cache.kept("kernels", "k") is None
    cache.keep("kernels", "k", "again")
    assert cache.kept("kernels", "k") == "again"


def test_no_room_for_it_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path))
    (tmp_path / "kernels").write_text("a file where the folder is to be")
    cache.keep("kernels", "k", "text")
    assert cache.kept("kernels", "k") is None
    assert (tmp_path / "kernels").read_text() == "a file where the folder is to be"
