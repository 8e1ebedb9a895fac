"""An application for a board that has no Python: the virtual Raspberry Pi 5, which has none."""

from __future__ import annotations

import pytest

from edgellm.cli import main


def test_a_missing_python_is_named_before_anything_is_compiled(start_board, capsys: pytest.CaptureFixture[str]) -> None:
    start_board("virtual-rpi5")
    assert main(["deploy", "--board", "virtual-rpi5", "--app", "voice_assistant"]) == 1
    out, err = capsys.readouterr()
    assert "python3 is missing on virtual-rpi5" in err
    assert "sudo apt-get install python3" in err
    assert "compiled" not in out
