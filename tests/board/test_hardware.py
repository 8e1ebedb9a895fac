"""The whole line on the board that EDGELLM_BOARD names; a virtual one will do."""

import json
import os
from pathlib import Path

import pytest

from edgellm.cli import main

MODEL = Path(__file__).resolve().parents[2] / "examples" / "voice_assistant" / "model"
QUESTION = "is the front door locked"

pytestmark = pytest.mark.board


@pytest.fixture
def board() -> str:
    name = os.environ.get("EDGELLM_BOARD")
    if not name:
        pytest.skip("set EDGELLM_BOARD to a board's name or type (`edgellm boards`)")
    return name


def answer(board: str, capsys: pytest.CaptureFixture[str]) -> dict:
    """Deploys the demo model and asks; greedy, so that the answer is the same anywhere."""
    assert main(["deploy", "--board", board, str(MODEL)]) == 0
    capsys.readouterr()
    assert main(["run", "--board", board, "--temperature", "0", "-n", "32", "-p", QUESTION, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_board_answers_as_this_machine_does(board, capsys):
    assert answer(board, capsys)["text"] == answer("local", capsys)["text"]


def test_board_can_be_measured(board, capsys):
    answer(board, capsys)
    assert main(["bench", "--board", board, "--json"]) == 0
    figures = {figure["kind"]: figure for figure in json.loads(capsys.readouterr().out)["figures"]}
    assert figures["decode"]["median"] > 0
