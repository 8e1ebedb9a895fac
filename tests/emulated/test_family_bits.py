"""Every family gives the same bits on ARM as here. The real program runs on both; ARM is emulated.

A sample that has every kernel that Llama lacks runs always. With `make test-full`, every configuration runs in every
scheme, on one of the ARM tiers in turn.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crosscompile.runtime import build_runtime
from crosscompile.target import target_of_tier
from tests.compile.test_model import host_tiers
from tests.emulated.test_bits import KINDS, MACHINES, SCHEMES, Machine, difference, launcher, make_bundle, run_logits
from tests.oracle.configurations import byte_tokenizer
from tests.oracle.family_checkpoints import text, write_checkpoint
from tests.oracle.family_configurations import FAMILIES

ARM = {machine.tier: machine for machine in MACHINES if machine.board is not None}
SAMPLE = (
    ("gemma2-caps", "w4a8", "dotprod"),
    ("stablelm-parallel", "w8a8", "armv8-neon"),
    ("gpt2-untied", "f16", "armv7-neon"),
    ("olmo2-plain", "w4a8 i8", "i8mm"),
    ("phi3-long", "f32", "armv8-neon"),
    ("qwen2-moe-some", "w4a8", "armv7-neon"),
    ("mixtral-tied", "w4a8", "i8mm"),
    ("mamba-narrow", "w4a8", "armv7-neon"),
    ("mamba2-groups", "w8a8", "dotprod"),
    ("rwkv7-plain", "w4a8", "armv7-neon"),
)
ALL = [(name, scheme) for name in FAMILIES for scheme in (*SCHEMES, *KINDS)]


def check(name: str, scheme: str, machine: Machine, folder: Path) -> None:
    """Logits of the whole text, read eight rows at a time on ARM and one by one, too, against this machine's."""
    prefix = launcher(machine)
    tiers = host_tiers()
    if not tiers:
        pytest.skip("this machine's CPU has none of the tiers")
    made = write_checkpoint(folder / "model", name)
    vocab = made["config"]["vocab_size"]
    tokenizer = byte_tokenizer()
    tokenizer["added_tokens"] = []
    tokenizer["model"]["vocab"] = {symbol: i for symbol, i in tokenizer["model"]["vocab"].items() if i < vocab}
    (folder / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    ids = text(made)
    here = make_bundle(folder / "here", folder / "model", tiers[-1], scheme, short=True, stop_id=2)
    expected = run_logits([str(build_runtime(target_of_tier(tiers[-1])))], here, ids, "--threads", "2")
    there = make_bundle(folder / "there", folder / "model", machine.tier, scheme, short=True, stop_id=2)
    program = [*prefix(machine.cpu), str(build_runtime(target_of_tier(machine.tier)))]
    for options in (("--threads", "1"), ("--threads", "3", "--step", "1")):
        different = difference(run_logits(program, there, ids, *options), expected)
        assert not different, f"{name} {machine.tier} {scheme} {' '.join(options)}: {different}"


@pytest.mark.parametrize(("name", "scheme", "tier"), SAMPLE)
def test_a_sample_gives_the_same_bits(name: str, scheme: str, tier: str, tmp_path: Path) -> None:
    check(name, scheme, ARM[tier], tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize(("index", "name", "scheme"), [(i, *pair) for i, pair in enumerate(ALL)])
def test_every_family_gives_the_same_bits(index: int, name: str, scheme: str, tmp_path: Path) -> None:
    check(name, scheme, list(ARM.values())[index % len(ARM)], tmp_path)
