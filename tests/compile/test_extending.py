"""The worked example of crosscompile/EXTENDING.md, installed as a package and compared with NumPy."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint, reference
from crosscompile.models.architecture import scheme_for
from edgellm.worker import run_worker
from tests.compile.plan_runner import PlanRunner
from tests.compile.test_model import host_tiers
from tests.oracle.configurations import CONFIGURATIONS, tokens, write_checkpoint

DOCUMENT = Path(__file__).parents[2] / "crosscompile" / "EXTENDING.md"


class SquaredRelu(reference.Llama):
    """The same network in NumPy."""

    def feed_forward(self, h: np.ndarray, prefix: str) -> np.ndarray:
        up = np.maximum(self.linear(f"{prefix}.mlp.up_proj", self.scheme.body)(h), np.float32(0))
        return self.linear(f"{prefix}.mlp.down_proj", self.scheme.body)(up * up)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documented package, as pip would have installed it."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    code = next(text for kind, text in blocks if kind == "python")
    assert len(code.splitlines()) <= 100
    site = tmp_path / "site"
    information = site / "squared_relu-1.dist-info"
    information.mkdir(parents=True)
    (site / "squared_relu.py").write_text(code)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: squared_relu\nVersion: 1\n")
    table = next(text for kind, text in blocks if kind == "toml")
    sections = re.findall(r'entry-points\."([\w.]+)"\]\n(.*?)(?=\n\[|\Z)', table, re.DOTALL)
    lines = [f"[{group}]\n{body.replace(chr(34), '')}" for group, body in sections]
    (information / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return site


def test_the_example_compiles_and_answers(package: Path, tmp_path: Path) -> None:
    config = CONFIGURATIONS["llama-wide-heads"]
    directory = write_checkpoint(tmp_path / "model", config)
    changed = {**config, "architectures": ["SquaredReluForCausalLM"], "hidden_act": "relu2"}
    (directory / "config.json").write_text(json.dumps(changed))
    output = tmp_path / "output"
    output.mkdir()
    request = {"checkpoint": str(directory), "output": str(output), "tier": host_tiers()[-1], "os": "linux"}
    options = {"scheme": "w4a8", "embedding": None, "head": None, "kv": None, "dump": None, "short": True}
    run_worker({**request, **options}, None, lambda stage, done, total: None)
    ids = tokens(config, 70)
    expected = SquaredRelu(checkpoint.load(directory), scheme_for("w4a8")).logits(ids)
    found = PlanRunner(output).logits(ids, config["vocab_size"], 8)
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))
