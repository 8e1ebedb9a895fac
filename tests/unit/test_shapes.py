"""Random checkpoints: any size, no disk, the same values however they are sliced."""

import json

import numpy as np
import pytest

from crosscompile import checkpoint
from crosscompile.errors import CheckpointError
from edgellm import shapes
from edgellm.errors import ModelError
from edgellm.hub import resolve


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path))


def test_a_7b_shape_takes_a_few_megabytes():
    path, name = resolve("random:llama-2-7b")
    source = checkpoint.load(path)
    assert name == "llama-2-7b"
    assert sum(np.prod(info.shape, dtype=np.int64) for info in source.tensors.values()) == 6_738_415_616
    assert sum(file.stat().st_size for file in path.iterdir()) < 5_000_000


def test_values_do_not_depend_on_the_slicing():
    source = checkpoint.load(resolve("random:tiny")[0])
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        whole = source.read(name)
        parts = [source.read(name, slice(at, at + 7)) for at in range(0, len(whole), 7)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert 0.05 < source.read("model.embed_tokens.weight").std() < 0.15
    assert abs(source.read("model.norm.weight").mean() - 1) < 0.05


def test_tensors_differ_from_each_other():
    source = checkpoint.load(resolve("random:tiny")[0])
    q = [source.read(f"model.layers.{i}.self_attn.q_proj.weight") for i in range(2)]
    assert not np.array_equal(*q)
    assert len({row.tobytes() for row in q[0]}) == len(q[0])


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_the_vocabulary_is_as_large_as_the_model_says(shape):
    from tokenizers import Tokenizer

    path, _ = resolve(f"random:{shape}:1")
    source = checkpoint.load(path)
    tokenizer = Tokenizer.from_str(source.tokenizer_json.decode())
    assert tokenizer.get_vocab_size() == source.config["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("Two lines,\nä and 水.").ids) == "Two lines,\nä and 水."


def test_the_same_name_is_the_same_checkpoint_and_is_not_written_twice():
    path, _ = resolve("random:tiny")
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert resolve("random:tiny")[0] == path
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


@pytest.mark.parametrize("model", ["random:", "random:nothing", "random:tiny:0", "random:tiny:2:3"])
def test_unknown_shapes_are_refused(model):
    with pytest.raises(ModelError, match="smollm2-135m"):
        resolve(model)


@pytest.mark.parametrize("recipe", [{}, {"seed": -1, "tensors": {}}, {"seed": 0, "tensors": {"a": {"shape": [0]}}}])
def test_a_damaged_recipe_is_named(recipe):
    path, _ = resolve("random:tiny")
    (path / "random.json").write_text(json.dumps(recipe))
    with pytest.raises(CheckpointError, match=r"random\.json"):
        checkpoint.load(path)
