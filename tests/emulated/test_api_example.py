"""The Python example of edgellm/README.md, word for word but for the board and the model's place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgellm import cache

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_in_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "edgellm/README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for written, here in (
        ('"rpi5", host="pi@raspberrypi.local"', '"local"'),
        ("./MyModel", str(ROOT / "examples/voice_assistant/model")),
    ):
        assert written in code
        code = code.replace(written, here)
    monkeypatch.setenv("EDGELLM_CACHE", str(cache.root()))  # stays where it is when the home moves
    monkeypatch.setenv("HOME", str(tmp_path))
    exec(compile(code, "edgellm/README.md", "exec"), {})
    first, _, answer = capsys.readouterr().out.partition("\n")
    assert re.fullmatch(r"sent \d{6,} bytes, 0 were there already", first)
    assert '"turn_on"' in answer
