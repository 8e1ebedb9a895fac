"""Changing one layer of a model costs one layer: a real model, compiled twice, deployed to a real store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from crosscompile.checkpoint import RANDOM
from edgellm import shapes
from edgellm.board_session import ask_once, read_survey
from edgellm.compile import build
from edgellm.deployment import deploy
from edgellm.golden import host_target
from edgellm.local_remote import LocalRemote
from edgellm.precision import Options
from edgellm.runtime_program import find_model
from tests.caches import own_cache

N_LAYERS, CHANGED = 30, 17

pytestmark = pytest.mark.skipif(host_target() is None, reason="this machine's CPU has none of the tiers")


def retrained(original: Path, directory: Path) -> Path:
    """The same checkpoint with other weights in one layer."""
    shutil.copytree(original, directory)
    description = json.loads((directory / RANDOM).read_text())
    for name, tensor in description["tensors"].items():
        if name.startswith(f"model.layers.{CHANGED}.") and tensor["std"] is not None:
            tensor["std"] *= 1.25
    (directory / RANDOM).write_text(json.dumps(description))
    return directory


def test_one_of_thirty_layers_costs_at_most_a_twentieth_of_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", own_cache(tmp_path / "cache"))
    original, _ = shapes.make(f"random:tiny:{N_LAYERS}")
    before = build(original, "local", Options("w4a8")).bundle
    again = build(retrained(original, tmp_path / "retrained"), "local", Options("w4a8"))
    assert again.report["statistics"]["kernels_kept"]  # they do not depend on weights
    after = again.bundle

    (tmp_path / "home").mkdir()
    with LocalRemote("board", {"HOME": str(tmp_path / "home")}) as board:
        first = deploy(before, board, name="thirty")
        second = deploy(after, board, name="thirty")
        assert not second.unchanged
        assert 0 < second.sent_bytes <= 0.05 * first.sent_bytes
        # It is the new model that answers, with the new golden answers; and the old one shares what did not change.
        assert board.run(find_model(board, "thirty").argv("verify")).status == 0
        survey = read_survey(ask_once(board, str(tmp_path / "home"), "survey"), "board")
        assert survey.models["thirty"].current == after.sha256[:16]
        assert sum(survey.store.values()) == first.sent_bytes + second.sent_bytes
    changed = {file.path for file in after.files} - {
        new.path for new in after.files for old in before.files if (new.path, new.sha256) == (old.path, old.sha256)
    }
    assert changed == {f"weights/layer-{CHANGED:03d}.safetensors"}, "the shard of one layer, and no kernel or plan"
