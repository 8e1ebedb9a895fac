"""The same weights give the same bits: on every tier, for any number of threads and any cut of the prompt.

The real program runs on bundles of a random model for each tier, emulated where this machine lacks the CPU. Everything
is compared with the NumPy reference, so that one test failing names the tier that differs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint, reference
from crosscompile.kinds import BASES
from crosscompile.kinds import KINDS as ALL_KINDS
from crosscompile.models.architecture import WEIGHT_KINDS, scheme_for
from crosscompile.runtime import build_runtime
from crosscompile.target import TIERS, target_of_tier
from crosscompile.tokenizer import compile_tokenizer
from edgellm import bundle as bundles
from edgellm import virtual, virtual_parts
from edgellm.boards import load_board
from tests.compiling import compile_forked
from tests.oracle.configurations import BASE, tokens, write_checkpoint

CONFIG = {
    **BASE,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 80,
    "vocab_size": 1009,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "head_dim": 16,
    "num_key_value_heads": 1,
}
"""Six heads, because no tier divides by six with a shift."""

N_TOKENS = 140
"""More than two KV blocks, and more than the window."""
SCHEMES = ("f32", "f16", "w8a8", "w4a8", "w4a8 i8")
"""By name, and the type of the KV cache where it differs, or what embedding and head have where it is not w8a8."""
ABOVE = ("avx512-vnni", "avx-vnni", "dotprod", "i8mm")
"""Tiers that only multiply integers otherwise than one below them, which every run of the tests gives every scheme."""
KINDS = tuple(f"{kind.name}a8 {kind.name}a8" for kind in BASES if kind.name not in ("w4", "w8"))
"""What makes further kinds of weights of all matrices."""
GROUPED = tuple(f"{kind.name}a8 {kind.name}a8" for kind in ALL_KINDS.values() if kind.span > 1)
"""The same of those that share a scale among more columns."""
WIDE = {**CONFIG, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_hidden_layers": 2}
"""With columns that larger groups divide."""
SAMPLE = (
    *(("avx2", "w3a8"), ("avx2", "u8g64a8"), ("avx512-vnni", "n4g128a8"), ("avx-vnni", "u4g64a8")),
    *(("armv8-neon", "u8g128a8"), ("dotprod", "n4a8"), ("dotprod", "w4g128a8"), ("i8mm", "w2a8")),
    *(("armv7-neon", "w3a8"), ("armv7-neon", "u4g64a8")),
)
"""Each tier's kinds that every run of the tests takes; `make test-full` takes all of them."""


@dataclass(frozen=True)
class Machine:
    """Where a tier runs: on this machine, or as `cpu` of the emulator that belongs to a virtual board.

    static: the program linked with musl runs the same bundle too.
    """

    tier: str
    board: str | None = None
    cpu: str | None = None
    more_cpus: tuple[str, ...] = ()
    static: bool = False


MACHINES = (
    Machine("avx2"),
    Machine("avx512-vnni"),
    Machine("avx-vnni"),
    Machine("armv8-neon", "virtual-rpi4", "cortex-a72", ("cortex-a76", "max")),
    Machine("dotprod", "virtual-rpi5", "cortex-a76", ("max",), static=True),
    Machine("i8mm", "virtual-rpi5", "max"),
    Machine("armv7-neon", "virtual-rpi2", "cortex-a7"),
)


def launcher(machine: Machine) -> Callable[[str | None], list[str]]:
    """The command that a program for this tier is prefixed with, given a CPU; skips what cannot run here."""
    if machine.board is None:
        features = load_board("local").cpu_features
        if missing := [name for name in TIERS[machine.tier].requires if name not in features]:
            pytest.skip(f"this machine's CPU lacks {', '.join(missing)}, and there is no emulator that has it")
        return lambda cpu: []
    if reason := virtual_parts.missing_tool():
        pytest.skip(f"no emulator: {reason}")
    root, emulator = virtual.fetch(load_board(machine.board))
    return lambda cpu: [str(emulator), "-cpu", cpu or "max", "-L", str(root)]


def make_bundle(
    directory: Path,
    model: Path,
    tier: str,
    scheme: str,
    short: bool | None = None,
    stop_id: int = 257,
    layers: tuple[int, int | None] | None = None,
) -> Path:
    """A bundle without golden prompts and without the program.

    short: functions for few row counts; None: all but w4a8 are short. layers: those of a split bundle.
    """
    directory.mkdir()
    source = checkpoint.load(model)
    request = {"checkpoint": str(model), "output": str(directory), "tier": tier, "os": "linux", "dump": None}
    name, _, other = scheme.partition(" ")
    every, kv = (other, None) if other in WEIGHT_KINDS else (None, other or None)
    options = {
        "scheme": name,
        "embedding": every,
        "head": every,
        "kv": kv,
        "tensors": (),
        "short": scheme != "w4a8" if short is None else short,
        "layers": layers,
    }
    result = compile_forked({**request, **options})
    assert source.tokenizer_json is not None
    (directory / "tokenizer.bin").write_bytes(compile_tokenizer(source.tokenizer_json, source.tokenizer_config))
    target = target_of_tier(tier)
    manifest = {
        "model": {**result["model"], "name": "bits"},
        "scheme": result["scheme"],
        "target": {
            "device": "cpu",
            "arch": target.arch,
            "os": "linux",
            "tier": tier,
            "cpu_features": list(target.tier.requires),
        },
        "memory": result["memory"],
        "generation": {"stop_ids": [stop_id]},
        "golden": [],
        "provenance": {"tool": "test_bits"},
    }
    bundles.seal(directory, manifest)
    return directory


def run_logits(command: list[str], bundle: Path, ids: list[int], *options: str) -> np.ndarray:
    """Logits of every position as int32 bits, (n, vocab)."""
    file = bundle.parent / "logits.f32"
    argv = [*command, "run", str(bundle), "--tokens", ",".join(map(str, ids)), "--logits", str(file), *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(argv[:4])} … {options}: {done.stderr}"
    found = np.fromfile(file, np.int32).reshape(len(ids), -1)
    file.unlink()
    return found


def difference(found: np.ndarray, expected: np.ndarray) -> str:
    """Where two bit patterns of logits differ first, and by how much at most."""
    if np.array_equal(found, expected):
        return ""
    row, column = np.argwhere(found != expected)[0]
    a, b = found.view(np.float32), expected.view(np.float32)
    return (
        f"{np.count_nonzero(found != expected)} of {found.size} logits differ, first at position {row}, id {column}: "
        f"{a[row, column]!r} instead of {b[row, column]!r}; at most by {np.max(np.abs(a - b))}"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("bits") / "model", CONFIG)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "model", WIDE)


@pytest.fixture(scope="module")
def expected() -> Callable[..., np.ndarray]:
    """The reference's bits per scheme and model, computed once."""
    known: dict[tuple[str, Path], np.ndarray] = {}

    def of(scheme: str, model: Path) -> np.ndarray:
        if (scheme, model) not in known:
            ids = tokens(CONFIG, N_TOKENS)
            name, _, other = scheme.partition(" ")
            chosen = scheme_for(name, *([other] * 2 if other in WEIGHT_KINDS else [None, None, other or None]))
            known[scheme, model] = reference.logits(checkpoint.load(model), ids, chosen).view(np.int32)
        return known[scheme, model]

    return of


@pytest.mark.parametrize(("tier", "scheme"), SAMPLE)
def test_further_kinds_are_the_reference_to_the_bit(
    tier: str, scheme: str, wide: Path, expected: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    machine = next(each for each in MACHINES if each.tier == tier)
    test_logits_are_the_reference_to_the_bit(
        replace(machine, more_cpus=()), f"{scheme} {scheme}", wide, expected, tmp_path
    )


@pytest.mark.oracle
@pytest.mark.parametrize("scheme", [*KINDS, *GROUPED])
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.tier)
def test_every_kind_is_the_reference_to_the_bit(
    machine: Machine,
    scheme: str,
    model: Path,
    wide: Path,
    expected: Callable[..., np.ndarray],
    tmp_path: Path,
) -> None:
    used = wide if scheme in GROUPED else model
    test_logits_are_the_reference_to_the_bit(machine, scheme, used, expected, tmp_path)


@pytest.mark.parametrize(
    ("machine", "scheme"),
    [
        pytest.param(machine, scheme, id=f"{machine.tier}-{scheme}", marks=() if is_sampled else pytest.mark.oracle)
        for machine in MACHINES
        for scheme in SCHEMES
        for is_sampled in [machine.tier not in ABOVE or scheme in ("w8a8", "w4a8")]
    ],
)
def test_logits_are_the_reference_to_the_bit(
    machine: Machine, scheme: str, model: Path, expected: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    prefix = launcher(machine)
    bundle = make_bundle(tmp_path / "bundle", model, machine.tier, scheme)
    program = [*prefix(machine.cpu), str(build_runtime(target_of_tier(machine.tier)))]
    ids = tokens(CONFIG, N_TOKENS)
    for options in (("--threads", "1"), ("--threads", "3", "--step", "1"), ("--threads", "2", "--step", "13")):
        different = difference(run_logits(program, bundle, ids, *options), expected(scheme, model))
        assert not different, f"{machine.tier} {scheme} {' '.join(options)}: {different}"
    for cpu in machine.more_cpus:
        program = [*prefix(cpu), str(build_runtime(target_of_tier(machine.tier)))]
        different = difference(run_logits(program, bundle, ids), expected(scheme, model))
        assert not different, f"{machine.tier} {scheme} on {cpu}: {different}"
    if machine.static and scheme == "w4a8":
        program = [*prefix(machine.cpu), str(build_runtime(target_of_tier(machine.tier), "musl"))]
        different = difference(run_logits(program, bundle, ids), expected(scheme, model))
        assert not different, f"{machine.tier} {scheme} with musl: {different}"
