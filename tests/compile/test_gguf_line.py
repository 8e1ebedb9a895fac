"""The demo model as GGUF: the same bundle as of its safetensors, and its integers where they are quantized already."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint
from edgellm.compile import Compilation, build
from edgellm.errors import ModelError
from edgellm.golden import host_target
from edgellm.precision import Options
from tests.caches import own_cache
from tests.gguf_writing import write_checkpoint, write_llama

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "voice_assistant" / "model"
ANSWERS = json.loads((ROOT / "tests" / "data" / "demo.json").read_text())

pytestmark = pytest.mark.skipif(host_target() is None, reason="this machine's CPU has none of the tiers")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGELLM_CACHE", own_cache(tmp_path_factory.mktemp("cache")))
        yield


def made_of(kind: str, scheme: str, folder: Path) -> Compilation:
    return build(write_checkpoint(checkpoint.load(DEMO), folder / f"demo-{kind}.gguf", kind), "local", Options(scheme))


def test_greedy_tokens_equal_transformers(tmp_path: Path) -> None:
    made = made_of("BF16", "f32", tmp_path)
    bundle = made.bundle.path
    for entry in ANSWERS:
        ids = ",".join(map(str, entry["prompt"]))
        command = [bundle / "edgellm-rt", "run", bundle, "--tokens", ids, "-n", str(len(entry["tokens"]))]
        command += ["--temperature", "0", "--json"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert found["ids"] == entry["tokens"], entry["text"]


def test_all_that_decides_an_answer_is_byte_for_byte_that_of_the_safetensors(tmp_path: Path) -> None:
    ours, theirs = made_of("BF16", "w4a8", tmp_path).bundle, build(DEMO, "local", Options("w4a8")).bundle
    names = {file.path for file in theirs.files}
    assert names == {file.path for file in ours.files}
    assert {file.path: file.sha256 for file in ours.files} == {file.path: file.sha256 for file in theirs.files}
    assert ours.manifest["golden"] == theirs.manifest["golden"]
    assert ours.manifest["generation"] == theirs.manifest["generation"]


def test_a_file_without_a_tokenizer_says_where_one_may_lie(tmp_path: Path) -> None:
    file = write_llama(tmp_path / "bare.gguf", {})
    with pytest.raises(ModelError, match=r"bare\.gguf has no tokenizer; put .* beside it, as bare\.tokenizer\.json"):
        build(file, "local", Options("f32"))


def test_a_4_bit_file_keeps_its_integers(tmp_path: Path) -> None:
    made = made_of("Q4_0", "w4a8", tmp_path)
    statistics = made.report["statistics"]
    vectors = sum(info.n_bytes // 2 for info in checkpoint.load(DEMO).tensors.values() if len(info.shape) == 1)
    assert statistics["parameters_quantized_again"] == 0
    assert statistics["parameters_kept"] >= statistics["parameters"] - vectors - 2 * 1536 * 192
    assert len(made.bundle.manifest["golden"]) > 0
    # Reading the bundle's first matrix as FORMAT.md has it gives what gguf reads.
    source = checkpoint.load(tmp_path / "demo-Q4_0.gguf")
    rows = source.read("model.layers.0.self_attn.o_proj.weight")
    assert np.unique(rows[0, :32]).size <= 16
