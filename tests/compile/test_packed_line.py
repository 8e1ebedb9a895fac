"""The demo model packed as GPTQ and AWQ with our own integers: the very bundle of its plain checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from crosscompile import checkpoint
from crosscompile.kinds import KINDS, zero_points
from crosscompile.packing import quantize
from edgellm.compile import build
from edgellm.golden import host_target
from edgellm.precision import Options
from tests.caches import own_cache

DEMO = Path(__file__).parents[2] / "examples" / "voice_assistant" / "model"

pytestmark = pytest.mark.skipif(host_target() is None, reason="this machine's CPU has none of the tiers")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGELLM_CACHE", own_cache(tmp_path_factory.mktemp("cache")))
        yield


def words(numbers: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Eight neighbours of the last axis in one int32, the lowest nibble first the one that `order` names first."""
    eights = numbers.astype(np.uint32).reshape(*numbers.shape[:-1], -1, 8)
    found = np.zeros(eights.shape[:-1], np.uint32)
    for nibble, place in enumerate(order):
        found |= eights[..., place] << np.uint32(4 * nibble)
    return found.view(np.int32)


def pack(folder: Path, method: str, kind: str) -> Path:
    """The demo with every matrix of its layers packed in the kind's groups: w4 with zeros of 8, u4 with its own."""
    source = checkpoint.load(DEMO)
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {}
    plain, group = tuple(range(8)), KINDS[kind].group
    for name in source.tensors:
        values = source.read(name)
        if not name.endswith("_proj.weight"):
            tensors[name] = values.astype(ml_dtypes.bfloat16)
            continue
        q, scale = quantize(kind, values)
        zero = zero_points(q, group) if KINDS[kind].zero else np.full(scale.shape, 8, np.uint8)
        unsigned, layer = (q + np.repeat(zero.astype(np.int8), group, 1)).astype(np.uint8), name.removesuffix("weight")
        zeros = zero.T.astype(np.int64) - (method == "gptq") & 15
        if method == "gptq":
            tensors[layer + "qweight"] = np.ascontiguousarray(words(unsigned, plain).T)
            tensors[layer + "g_idx"] = np.arange(values.shape[1], dtype=np.int32) // group
            tensors[layer + "qzeros"] = words(zeros, plain)
        else:
            order = (0, 2, 4, 6, 1, 3, 5, 7)
            tensors[layer + "qweight"] = words(np.ascontiguousarray(unsigned.T), order)
            tensors[layer + "qzeros"] = words(zeros, order)
        tensors[layer + "scales"] = np.ascontiguousarray(scale.T)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": group}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("gptq", "w4g64"),
        ("awq", "u4"),
        *(pytest.param(*each, marks=pytest.mark.oracle) for each in (("gptq", "w4"), ("awq", "u4g64"))),
    ],
)
def test_packed_checkpoints_give_the_bundle_of_the_plain_one(method: str, kind: str, tmp_path: Path) -> None:
    expected = build(DEMO, "local", Options(f"{kind}a8"))
    sums = {file.path: file.sha256 for file in expected.bundle.files}
    made = build(pack(tmp_path / f"{method}-{kind}", method, kind), "local", Options(f"{kind}a8"))
    assert {file.path: file.sha256 for file in made.bundle.files} == sums
    assert made.bundle.manifest["golden"] == expected.bundle.manifest["golden"]
    statistics = made.report["statistics"]
    assert statistics["parameters_kept"] > statistics["parameters"] // 2
    assert statistics["parameters_quantized_again"] == 0
