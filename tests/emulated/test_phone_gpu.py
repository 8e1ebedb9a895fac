"""A model for processor and GPU on the emulated phone, its program built without Android's NDK.

The phone's linker and libc are musl's, with bionic's names and layouts where they differ (edgellm/virtual_bionic.c).
What is shown is that the program starts where Android's would start it, finds all that it takes from the phone, and
computes on the processor where no driver is. The phone has none, so what a driver does there is not shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.address import AdbAddress
from edgellm.cli import main

MODEL = str(Path(__file__).resolve().parents[2] / "examples/voice_assistant/model")
PROMPT = "turn on the kitchen light"


def test_it_is_deployed_without_an_ndk_and_falls_back(
    start_board: Callable[[str], AdbAddress], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    start_board("virtual-android")
    phone = ("--board", "virtual-android")
    assert main(["deploy", MODEL, *phone, "--device", "both", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert "there is no Vulkan here (libvulkan.so)" in str(done["proof"]["gpu"])
    run = ("run", "-p", PROMPT, "--temperature", "0", *phone)
    assert main([*run, "--json"]) == 0
    assert '"turn_on"' in json.loads(capsys.readouterr().out)["text"]
    assert main([*run, "--device", "vulkan"]) == 1
    assert "GPU_MISSING" in capsys.readouterr().err
    assert main(["undeploy", "--model", "voice_assistant", *phone]) == 0
