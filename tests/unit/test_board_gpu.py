"""What is said of a board's GPU before a model is sent to it."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm import board_gpu
from edgellm.errors import UnsuitableError
from edgellm.remote import Result

DRIVER, LOADER = "driver panfrost_icd.json", "loader /usr/lib/aarch64-linux-gnu/libvulkan.so.1"


class Answers:
    """Answers the script with these lines."""

    name = "desk"

    def __init__(self, *lines: str) -> None:
        self.lines = lines

    def script(self, text: str) -> Result:
        assert "icd.d" in text
        return Result(0, "".join(f"{line}\n" for line in self.lines).encode(), "")


def board_with(*lines: str) -> Any:
    return Answers(*lines)


@pytest.mark.parametrize(
    ("lines", "what", "remedy"),
    [
        ((), "no Vulkan driver", "apt install mesa-vulkan-drivers"),
        ((DRIVER,), "no loader", "apt install libvulkan1"),
        ((DRIVER, "loader", "render", "", "\x00 \xff"), "no loader", "apt install libvulkan1"),
        ((DRIVER, LOADER, "render /dev/dri/renderD128 "), "renderD128 is not open to this user", "usermod -aG render"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(lines: tuple[str, ...], what: str, remedy: str):
    board = board_with(*lines)
    with pytest.raises(UnsuitableError, match="desk has no GPU that could compute") as caught:
        board_gpu.check(board, "vulkan")
    said = board_gpu.check(board, "both")
    assert said is not None
    for text in (str(caught.value), said):
        assert what in text
        assert remedy in text
    assert "until then the processor computes" in said


def test_nothing_is_said_where_nothing_is_missing_or_no_gpu_is_wanted():
    whole = board_with(DRIVER, LOADER, "render /dev/dri/renderD128 usable")
    assert board_gpu.check(whole, "vulkan") is None
    assert board_gpu.check(board_with(DRIVER, LOADER), "both") is None
    assert board_gpu.check(board_with(), "cpu") is None
    phone = board_with("driver vulkan.adreno.so", "loader /system/lib64/libvulkan.so", "render /dev/dri/renderD128 ")
    assert board_gpu.check(phone, "vulkan") is None  # its driver opens another file
