"""A calibrated model is closer to the original, its bundle says so, and what is worse than asked is not made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from crosscompile import checkpoint
from crosscompile.errors import ConfigError, QuantizeError
from crosscompile.forward import Values, logits
from crosscompile.models import FAMILIES as DESIGNS
from crosscompile.models import name_of
from edgellm import cli, hub
from edgellm.boards import load_board
from edgellm.compile import Options, build
from edgellm.errors import QualityError, UsageError
from edgellm.precision import Wish, prepare
from edgellm.quality import Gate
from edgellm.worker import request_of, run_worker
from tests.oracle.family_checkpoints import LOGITS, WHOLE, text, write_checkpoint
from tests.oracle.family_configurations import FAMILIES
from tests.server import MODEL

CONVERSATIONS = Path(__file__).parents[1] / "data" / "conversations_heldout.jsonl"
FOUR = Options("w4a8", "w4a8", "w4a8")
RECURRENT = ("mamba", "falcon-mamba", "rwkv")  # the forward pass in NumPy has none of them
RANDOM = "random:tiny"  # nothing of it was trained to be rounded


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Conversations to calibrate on, and others to judge by."""
    lines = CONVERSATIONS.read_text(encoding="utf-8").splitlines()
    folder = tmp_path_factory.mktemp("texts")
    for name, part in (("calibrate", lines[20:]), ("judge", lines[:12])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
    return folder / "calibrate.jsonl", folder / "judge.jsonl"


def uneven(folder: Path) -> Path:
    """The demo model with some channels large and some small, as large models have them: it was trained to be rounded,
    and computes the same, but is not easily rounded any more."""
    shutil.copytree(MODEL, folder)
    source = checkpoint.load(MODEL)
    values = {name: source.read(name).astype(np.float32) for name in source.tensors}
    generator = np.random.default_rng(7)
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for name in sorted(values):
        prefix, _, norm = name.removesuffix(".weight").rpartition(".")
        if norm in readers:
            factor = np.exp(generator.standard_normal(values[name].shape, np.float32))
            values[name] *= factor
            for reader in readers[norm]:
                values[f"{prefix}.{reader}.weight"] /= factor
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_calibration_makes_a_closer_model_and_the_card_says_so(texts: tuple[Path, Path], tmp_path: Path) -> None:
    calibrate, judge = texts
    model = uneven(tmp_path / "uneven")
    plain = build(model, "local", FOUR, gate=Gate(judge)).bundle.manifest["quality"]
    made = build(model, "local", FOUR, wish=Wish(calibrate), gate=Gate(judge))
    card = made.bundle.manifest["quality"]
    assert card["kl_nats"] < 0.5 * plain["kl_nats"]
    assert card["bits_per_weight"] == plain["bits_per_weight"] < 4.7
    assert plain["calibration"] is None
    assert card["calibration"]["tokens"] > 1000
    assert card["positions"] == plain["positions"] > 100
    assert made.report["statistics"]["parameters_calibrated"] == made.report["statistics"]["parameters"] - norms()


def norms() -> int:
    """Parameters of the demo model that are vectors."""
    return sum(int(np.prod(t.shape)) for t in checkpoint.load(MODEL).tensors.values() if len(t.shape) == 1)


def test_the_gate_refuses_and_leaves_nothing(
    texts: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    with pytest.raises(QualityError, match=r"not shipped: .* KL divergence of 0\.\d+ nats on judge\.jsonl .*--max-kl"):
        build(MODEL, "local", FOUR, output, gate=Gate(texts[1], max_kl=1e-6))
    assert list(tmp_path.iterdir()) == []
    arguments = ["compile", str(MODEL), "--board", "local", "--embedding", "w4a8", "--head", "w4a8", "--json"]
    assert cli.main([*arguments, "-o", str(output), "--eval", str(texts[1]), "--max-kl", "5"]) == 0
    card = json.loads(capsys.readouterr().out)["quality"]
    assert card == json.loads((output / "manifest.json").read_text())["quality"]
    assert cli.main([*arguments, "-o", str(tmp_path / "x"), "--max-kl", "5"]) == 1
    assert "--max-kl needs --eval" in capsys.readouterr().err


def weight_bytes(scheme: str) -> int:
    """Of RANDOM with all of its matrices so: the compiling process's own figure; nothing is compiled."""
    path, _ = hub.resolve(RANDOM, lambda *_: None)
    request = request_of(checkpoint.load(path), load_board("local").target())
    parts = {"scheme": scheme, "embedding": scheme, "head": scheme, "kv": None, "tensors": ()}
    return int(run_worker({**request, **parts, "outline": True}, None, lambda *_: None)["weight_bytes"])


@pytest.mark.parametrize("calibrated", [pytest.param(False, marks=pytest.mark.oracle), True])
def test_a_budget_is_kept(tmp_path: Path, calibrated: bool) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_bytes(CONVERSATIONS.read_bytes())
    least, most = weight_bytes("w4a8"), weight_bytes("w8a8")
    budget = (least + most) // 2
    made = build(RANDOM, "local", Options("w4a8"), wish=Wish(plain if calibrated else None, budget)).bundle
    taken = made.manifest["memory"]["weight_bytes"]
    assert least < taken <= budget
    assert taken > 0.75 * budget  # its matrices are few, and taken whole
    assert set(made.manifest["scheme"]["tensors"].values()) <= {"w4a8", "w8a8"}


def test_a_budget_below_four_bits_takes_three_and_two() -> None:
    path, _ = hub.resolve(RANDOM, lambda *_: None)
    source, target = checkpoint.load(path), load_board("local").target()

    def quiet(stage: str, done: int, total: int) -> None:
        pass

    least, four = weight_bytes("w2a8"), weight_bytes("n4a8")
    assert least < 0.6 * four
    budget = (least + four) // 2
    made = prepare(source, target, Options("n4a8"), Wish(None, budget), quiet)
    chosen = dict(made.tensors)
    assert set(chosen.values()) <= {"w2a8", "w3a8", "w8a8", "n4a8"}
    assert "w3a8" in chosen.values()
    with pytest.raises(QuantizeError, match=r"budget of .* is too small"):
        prepare(source, target, Options("w4a8"), Wish(None, least // 2), quiet)


def test_wishes_that_make_no_sense(tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("Not enough.")
    with pytest.raises(UsageError, match=r"few\.txt has \d+ tokens; calibration wants 1024"):
        build(MODEL, "local", FOUR, wish=Wish(few))
    with pytest.raises(ConfigError, match=r"weight has 192 columns, which groups of 128 .*; take w4g64a8 or w4a"):
        build(MODEL, "local", Options("w4g128a8"))
    with pytest.raises(ConfigError, match=r"weight has 192 columns, which groups of 128 .*; take w4g64a8 or w4a"):
        build(MODEL, "local", Options("w4g128a8"), wish=Wish(CONVERSATIONS))
    with pytest.raises(UsageError, match="scheme f16 rounds nothing"):
        build(MODEL, "local", Options("f16"), wish=Wish(CONVERSATIONS))


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith(RECURRENT)])
def test_the_forward_pass_is_transformers(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, name)
    source = checkpoint.load(tmp_path)
    found = logits(
        Values(source, DESIGNS[name_of(source.config)].design(source.config)), text({"config": source.config})
    )
    whole = np.load(LOGITS)[f"{name}.whole"]
    assert np.abs(found[list(WHOLE)] - whole).max() <= 1e-4 * np.abs(whole).max()
