"""Compiling as the parent process sees it: keys, memory, the worker's errors and its death. No TVM here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from crosscompile import checkpoint
from crosscompile.errors import CheckpointError, CodegenError, ConfigError
from crosscompile.target import target_of_tier
from edgellm import cache, compile_worker, golden
from edgellm.boards import load_board
from edgellm.compile import MemoryCheck, cache_key
from edgellm.errors import ModelError, UnsuitableError
from edgellm.generation import generation
from edgellm.precision import Options
from edgellm.worker import request_of, run_worker

ROOT = Path(__file__).parents[2]
MEMORY = {"weight_bytes": 300_000_000, "arena_bytes": 10_000_000, "kv_bytes_per_token": 20_000}


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"vocab_size": 100, "eos_token_id": 2, "bos_token_id": 1}))
    (directory / "tokenizer.json").write_text("{}")
    save_file({"a": np.zeros((4, 4), np.float32)}, directory / "model.safetensors")
    return directory


def key(directory, name="m", tier="dotprod", **options):
    source = checkpoint.load(directory)
    chosen = Options(**{"scheme": "w4a8", **options})
    return cache_key(source, name, target_of_tier(tier), chosen, lambda *_: None)[0]


def test_the_key_follows_everything_that_matters(model, monkeypatch):
    first = key(model)
    assert key(model) == first
    others = {
        key(model, name="other"),
        key(model, tier="i8mm"),
        key(model, scheme="w8a8"),
        key(model, embedding="f16"),
        key(model, head="f16"),
        key(model, kv="f32"),
    }
    save_file({"a": np.ones((4, 4), np.float32)}, model / "model.safetensors")
    others.add(key(model))
    (model / "tokenizer.json").write_text("{ }")
    others.add(key(model))
    (model / "chat_template.jinja").write_text("x")
    others.add(key(model))
    monkeypatch.setattr(cache, "versions", lambda: {"apache-tvm": "9"})
    others.add(key(model))
    assert len(others) == 10
    assert first not in others


def test_kernels_are_kept_by_what_decides_them(model, monkeypatch):
    def key(config=None, pooling="mean", **changes):
        source = checkpoint.load(model)
        request = {**request_of(source, target_of_tier("dotprod")), "scheme": "w4a8", "output": "a", **changes}
        return compile_worker._key(SimpleNamespace(config=config or source.config, pooling=pooling), request)

    first = key()
    save_file({"a": np.ones((4, 4), np.float32)}, model / "model.safetensors")
    assert key(output="b", half=True, lora="c", calibrated="d", dump=None) == first
    others = {key(config={"vocab_size": 101}), key(pooling="last"), key(scheme="f32"), key(kv="i8"), key(tier="i8mm")}
    others |= {
        key(short=True),
        key(layers=[0, 1]),
        key(knobs={"linear": {}}),
        key(gpu={"schedule": "mali"}),
        key(os="x"),
    }
    monkeypatch.setattr(cache, "versions", lambda: {"apache-tvm": "9"})
    others.add(key())
    monkeypatch.setattr(cache, "compiler_digest", lambda: "others")
    others.add(key())
    assert len(others) == 12
    assert first not in others


def test_hashes_are_remembered_by_what_stat_says(model):
    file = model / "model.safetensors"
    read = []
    first = cache.content_hashes([file], read.append)
    assert sum(read) == file.stat().st_size
    assert cache.content_hashes([file], lambda n: pytest.fail("read again")) == first
    status = file.stat()
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert cache.content_hashes([file]) != first
    (cache.root() / "hashes.json").write_text("{half")
    assert cache.content_hashes([file]) != first


def test_memory_that_does_not_fit_is_told_with_the_numbers():
    board = load_board("rpi-zero-2w")
    MemoryCheck(board, 4096)(MEMORY, 8192)
    small = replace(board, memory=replace(board.memory, ram_bytes=400_000_000))
    with pytest.raises(UnsuitableError) as error:
        MemoryCheck(small, 8192)(MEMORY, 8192)
    text = str(error.value)
    assert "needs 491 MB (weights 300 MB, arena 10 MB, KV cache 164 MB for 8192 positions, runtime 17 MB)" in text
    assert f"{small.label} has 400 MB: use --context 3648 or less" in text
    MemoryCheck(small, 3648)(MEMORY, 8192)
    MemoryCheck(small, 8192)(MEMORY, 2048)  # the model itself ends earlier
    tiny = replace(board, memory=replace(board.memory, ram_bytes=200_000_000))
    with pytest.raises(UnsuitableError, match="use a smaller scheme"):
        MemoryCheck(tiny, None)(MEMORY, 8192)


def request(directory, output):
    options = {"scheme": "w4a8", "embedding": None, "head": None, "kv": None}
    place = {"checkpoint": str(directory), "output": str(output), "tier": "dotprod", "os": "linux", "dump": None}
    return {**place, **options}


def test_the_death_of_the_compiler_is_a_clean_error(model, tmp_path, monkeypatch):
    fake = tmp_path / "fake" / "tvm"
    fake.mkdir(parents=True)
    text = "LLVM ERROR: Cannot select: intrinsic %llvm.aarch64.neon.sdot"
    abort = f"import os, sys\nprint({text!r}, 'and a stack', sep='\\n', file=sys.stderr, flush=True)\nos.abort()\n"
    (fake / "__init__.py").write_text(abort)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(fake.parent), str(ROOT)]))
    (tmp_path / "out").mkdir()
    with pytest.raises(CodegenError) as error:
        run_worker(request(model, tmp_path / "out"), None, lambda *_: None)
    assert "ended with signal 6 for tier dotprod" in str(error.value)
    assert text in str(error.value)
    assert "try another --scheme" in str(error.value)
    assert os.listdir(tmp_path / "out") == []


def test_the_worker_s_errors_keep_their_type(model, tmp_path):
    (model / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="is truncated"):
        run_worker(request(model, tmp_path), None, lambda *_: None)
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        run_worker(request(model, tmp_path), None, lambda *_: None)


def test_the_parent_never_imports_tvm():
    program = (
        "import sys, edgellm, edgellm.compile, edgellm.compile_cli, edgellm.evaluate, edgellm.cache, edgellm.bundle\n"
        "import crosscompile.tokenizer, crosscompile.template, crosscompile.runtime\n"
        "sys.exit(any(name.split('.')[0] in ('tvm', 'tvm_ffi', 'torch') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_generation(model):
    def section(advice):
        (model / "generation_config.json").write_text(json.dumps(advice))
        return generation(checkpoint.load(model), 100)

    assert section({}) == {"stop_ids": [2], "bos_id": 1}
    assert section({"eos_token_id": [2, 7]})["stop_ids"] == [2, 7]
    sampled = section({"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.1})
    assert sampled == {"stop_ids": [2], "bos_id": 1, "top_p": 0.9, "repetition_penalty": 1.1, "temperature": 1.0}
    assert "temperature" not in section({"temperature": 0.6})
    with pytest.raises(CheckpointError, match=r"generation_config\.json: token id 100 is not in the vocabulary of 100"):
        section({"eos_token_id": 100})
    with pytest.raises(CheckpointError, match=r"top_p must be a number"):
        section({"do_sample": True, "top_p": "high"})


@pytest.mark.parametrize(
    ("command", "timeout_s", "said"),
    [
        (["sh", "-c", "echo 'no key' >&2; exit 3"], 60, "golden prompts: the runtime failed on this machine: no key"),
        (["sh", "-c", "exit 3"], 60, "exit code 3"),
        (["sleep", "60"], 0.1, "did not answer on this machine"),
        (["./there-is-no-such-program"], 60, "did not answer on this machine"),
    ],
)
def test_a_runtime_that_fails_here_is_quoted(command: list[str], timeout_s: float, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        golden.output_of(command, "golden prompts", timeout_s)
