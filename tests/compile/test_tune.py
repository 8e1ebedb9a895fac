"""What tuning may choose: every schedule of a layer gives the same bits, and what was chosen reaches the compiler."""

from __future__ import annotations

import ctypes
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint, shim
from crosscompile.codegen import compile_kernels, compile_object
from crosscompile.kernels import linear
from crosscompile.models.architecture import scheme_for
from crosscompile.packing import Packing
from crosscompile.program import Ladder, LinearLayer, compile_model, linear_layers_of
from crosscompile.target import TIERS, target_of_tier
from edgellm import golden, shapes, tuned
from edgellm.boards import load_board
from edgellm.compile import cache_key
from edgellm.precision import Options

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True,
    "hidden_act": "silu", "head_dim": 16,
}  # fmt: skip


def layers(rows: int) -> tuple[LinearLayer, ...]:
    scheme = scheme_for("w4a8", None, None, None)
    found = linear_layers_of(CONFIG, golden.host_target(), scheme, Ladder((rows,), (1,)))
    return tuple(layer for layer in found if layer.calls and layer.work.n == rows)


def candidates(layer: LinearLayer) -> tuple[linear.LinearKnobs, ...]:
    work = layer.work
    n_groups = work.rows_padded // Packing.parse(work.packing).rows
    return linear.candidates(golden.host_target().tier, work.packing, work.n, n_groups)


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_every_schedule_gives_the_same_bits(rows, tmp_path):
    target = golden.host_target()
    layer = max(layers(rows), key=lambda each: (":add" in each.work.key, each.work.columns))
    knobs = candidates(layer)
    assert len(knobs) > 5
    kernels = {
        f"k{i}": linear.schedule(layer.function, target.tier, layer.work.packing, k) for i, k in enumerate(knobs)
    }
    code, signatures = compile_kernels(kernels, target)
    (tmp_path / "kernels.so").write_bytes(code)
    library = ctypes.CDLL(str(tmp_path / "kernels.so"))
    rng = np.random.default_rng(0)
    arrays = []
    for argument in shim.arguments_of(layer.function):
        values = rng.integers(0, 255, argument.elements)
        exact = np.dtype(argument.dtype).kind in "iu"
        arrays.append(aligned(values.astype(argument.dtype) if exact else (values / 256 + 0.5).astype(argument.dtype)))
    results = set()
    for name in kernels:
        signature = signatures[name]
        arrays[-1][:] = 0
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        call = getattr(library, signature.name)
        assert call(*pointers, ctypes.c_int64(0), ctypes.c_int64(signature.groups)) == 0
        results.add(arrays[-1].tobytes())
    assert len(results) == 1
    assert np.count_nonzero(arrays[-1]) > 0


@pytest.mark.parametrize("tier", list(TIERS))
def test_no_tile_needs_more_stack_than_tvm_gives_it(tier):
    """What is larger comes from a function of TVM's runtime, which boards do not have."""
    for kind in ("w4", "w8", "f16"):
        packing = TIERS[tier].packing(kind)
        for knobs in linear.candidates(TIERS[tier], packing, 64, 64):
            assert 4 * knobs.tokens * knobs.groups * Packing.parse(packing).rows < 1024


@pytest.mark.parametrize("kind", ["w4", "u4", "w8"])
@pytest.mark.parametrize("tier", ["dotprod", "i8mm"])
def test_tiles_that_this_machine_cannot_run_can_be_made(tier, kind):
    packing = TIERS[tier].packing(kind)
    for n in (8, 32):
        function = linear.quantized_linear(n, 64, 256, TIERS[tier], packing)
        knobs = [each for each in linear.candidates(TIERS[tier], packing, n, 8) if each.block == 1]
        assert {(each.tokens, each.parts) for each in knobs} >= {(1, 1), (4, 1), (8, 1), (8, 2), (min(n, 16), 2)}
        kernels = {f"k{i}": linear.schedule(function, TIERS[tier], packing, each) for i, each in enumerate(knobs)}
        compile_object({"k": kernels["k0"]}, target_of_tier(tier))
        larger = next(i for i, each in enumerate(knobs) if (each.tokens, each.parts) == (min(n, 16), 2))
        compile_object({"k": kernels[f"k{larger}"]}, target_of_tier(tier))


@pytest.mark.parametrize(
    "found", [{"tokens": 24}, {"tokens": 12}, {"tokens": 8, "parts": 3}, {"tokens": 4, "groups": 3}]
)
@pytest.mark.parametrize("kind", ["w4", "w3"])
def test_knobs_of_a_file_are_made_to_fit(kind, found):
    tier = TIERS["dotprod"]
    packing = tier.packing(kind)
    function = linear.quantized_linear(24, 40, 64, tier, packing)
    linear.schedule(function, tier, packing, linear.LinearKnobs(**found))


def aligned(values: np.ndarray) -> np.ndarray:
    """The same at an address that kernels may expect."""
    memory = np.zeros(values.nbytes + 64, dtype="uint8")
    start = -memory.ctypes.data % 64
    view = memory[start : start + values.nbytes].view(values.dtype)
    view[:] = values
    return view


def test_what_is_found_is_filed_and_read(tmp_path):
    tier, key = TIERS["dotprod"], tuned.key_for(load_board("rpi5"), 4)
    found = linear.candidates(tier, tier.packing("w4"), 8, 8)
    kernels = {f"linear.{i}": {"knobs": asdict(knobs)} for i, knobs in enumerate(found)}
    tuned.save(tmp_path / "rpi5.json", key, kernels)
    read = tuned.read(tmp_path / "rpi5.json")[0]["kernels"]
    assert {linear.LinearKnobs(**entry["knobs"]) for entry in read.values()} == set(found)


def test_what_was_found_is_what_is_compiled():
    target, scheme = golden.host_target(), scheme_for("w4a8", None, None, None)
    ladder = Ladder((8,), (1,))
    found = {
        layer.work.key: asdict(candidates(layer)[-1])
        for layer in linear_layers_of(CONFIG, target, scheme, ladder)
        if layer.work.n == 8 and layer.calls
    }
    default = compile_model(CONFIG, target, scheme, ladder=ladder)
    tuned = compile_model(CONFIG, target, scheme, ladder=ladder, tuned=found)
    assert default.kernels != tuned.kernels
    assert compile_model(CONFIG, target, scheme, ladder=ladder, tuned={"linear.other": {}}).kernels == default.kernels


def test_results_are_part_of_the_cache_key(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path))
    path, name = shapes.make("random:tiny")
    source = checkpoint.load(path)

    def key(knobs: dict[str, dict[str, int]]) -> str:
        return cache_key(source, name, golden.host_target(), Options("w4a8"), lambda *_: None, knobs)[0]

    one = {"linear.a": {"tokens": 1, "groups": 1, "ahead": 0, "block": 1}}
    assert len({key({}), key(one), key({"linear.a": {**one["linear.a"], "groups": 2}})}) == 3
    assert key(one) == key(dict(one))


def test_the_shim_refuses_what_it_does_not_take(tmp_path: Path):
    layer = layers(1)[0]
    target = golden.host_target()
    kernel = linear.schedule(layer.function, target.tier, layer.work.packing)
    made = shim.build({"k": kernel}, target, copies=3)
    (tmp_path / "measured.so").write_bytes(made.library)
    library = ctypes.CDLL(str(tmp_path / "measured.so"))
    assert getattr(library, f"__tvm_ffi_{made.functions['k']}")(None, None, 0, None) == -1
    assert any(argument.rotates for argument in made.arguments)
