"""What is made of the answers of a fleet's GPUs. How boards are asked: tests/emulated/test_fleet.py."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgellm import fleet_gpu, fleet_plan, fleet_show
from edgellm.boards import Board, find_board, load_board
from edgellm.bundle import Bundle
from edgellm.errors import UnsuitableError
from edgellm.fleet import Fleet, Member
from edgellm.fleet_gpu import Asked, Survey
from edgellm.gpu_facts import Device, VulkanSection
from edgellm.instances import Instance, add_instance
from edgellm.rollout import FAILED, SAME, UNREACHABLE, BoardState, Rollout

ARM, QUALCOMM = 0x13B5, 0x5143
GPU = Device(
    *("A GPU", "integrated", "driver", "1.0", None, "1.3.0", ARM, 1024, 32768, 64, 1 << 30, 16),
    *(True, True, True, True, False, False),
)
NO_DRIVER: dict[str, Any] = {"devices": [], "gpu": None, "why": "no Vulkan driver", "unfit": True}
PHONE = "android-arm64"


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def phone() -> Board:
    """A type with a GPU of which the manifest knows nothing but that it is a Mali."""
    return replace(load_board(PHONE), vulkan=VulkanSection("some GPU", schedule="mali"))


def says(**changes: Any) -> dict[str, Any]:
    """What a board's task answers."""
    return {"devices": [{**asdict(GPU), **changes}], "gpu": "A GPU, class mali: ...", "why": None, "unfit": False}


def survey(answers: dict[str, dict[str, Any] | None], device: str = "both") -> Survey:
    """Of phones; None: it is off."""
    asked = [Asked(Member(name, PHONE, f"adb:{name}"), phone(), device) for name in answers]
    states = {
        name: BoardState(name, state=SAME, answer=said) if said is not None else BoardState(name, state=UNREACHABLE)
        for name, said in answers.items()
    }
    return fleet_gpu.concluded(asked, states)


def test_boards_of_one_class_have_one_bundle_for_what_all_allow():
    found = survey({"a": says(), "b": says(storage_buffers=12, dot=False), "c": says(shared_bytes=16384)})
    (kind,) = found.kinds
    assert kind.boards == ("a", "b", "c")
    assert (kind.section.storage_buffers, kind.section.shared_bytes, kind.section.capabilities) == (12, 16384, ())
    assert found.as_json()["kinds"][0]["class"] == "mali"


def test_who_does_not_answer_is_named_and_does_not_count(capsys: pytest.CaptureFixture[str]):
    nonsense = says(storage_buffers=-1)
    found = survey({"a": says(), "b": None, "c": NO_DRIVER, "d": nonsense, "e": NO_DRIVER, "f": {"gpu": "x"}})
    assert [kind.boards for kind in found.kinds] == [("a",)]
    assert list(found.uncounted) == ["b", "c", "d", "e", "f"]
    assert found.as_json()["not_counted"]["c"] == "no Vulkan driver"
    fleet_gpu.tell(found)
    out = capsys.readouterr().out
    assert f"GPUs       {PHONE}, a: A GPU, class mali: 64 buffers, 1024 threads and 32 KiB, dot products" in out
    assert "c, e do not count: no Vulkan driver" in out
    assert "d does not count: d: edgellm-rt gpus: storage_buffers is -1" in out
    fleet_gpu.tell(survey({"a": None}))
    assert f"{PHONE}: no board says what its GPU allows" in capsys.readouterr().out


def test_each_board_that_was_asked_has_a_line(capsys: pytest.CaptureFixture[str]):
    states = {"a": BoardState("a", state=SAME, answer=says()), "b": BoardState("b", state=SAME, answer=NO_DRIVER)}
    with fleet_show.shown(False, {SAME: "asked"}) as show:
        show(Rollout(states, [2], 2, Path("log")))
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert lines == [["a", "asked", "A GPU, class mali: ..."], ["b", "asked", "no Vulkan driver"]]


def plan(found: Survey, names: str, folder: Path) -> tuple[fleet_plan.Plan, list[str]]:
    """The plan, and the class that each bundle was made for."""
    classes: list[str] = []

    def make(model: str, board: Board | None, *chosen: str | None) -> Bundle:
        assert board is not None
        assert board.vulkan is not None
        classes.append(f"{board.vulkan.schedule} {board.vulkan.storage_buffers}")
        return Bundle(folder / str(len(classes)), {}, "0" * 64, ())

    members = [Member(name, PHONE, f"adb:{name}", ("g",), "Model") for name in names]
    args = argparse.Namespace(model=None, scheme=None, device="both", gpu_layers=None)
    wished = [replace(wish, board=phone()) for wish in fleet_plan.wishes(args, Fleet(folder, tuple(members)), members)]
    return fleet_plan.planned(wished, found, make), classes


def test_each_class_has_a_bundle_and_a_canary_that_can_try_it(tmp_path: Path):
    adreno = says(vendor=QUALCOMM, storage_buffers=24)
    found = survey({"a": NO_DRIVER, "b": adreno, "c": says(), "d": adreno, "e": None})
    made, classes = plan(found, "abcde", tmp_path)
    assert classes == ["mali 64", "adreno 24"]
    which = {name: bundle.path.name for name, bundle in made.bundles.items()}
    assert which == {"a": "1", "b": "2", "c": "1", "d": "2", "e": "1"}  # who did not answer: as the manifest expects
    assert made.n_canaries == 2
    assert [member.name for member in made.members] == ["c", "b", "a", "d", "e"]
    # Where no class is the manifest's, most boards' counts.
    only = survey({"a": None, "b": adreno})
    assert plan(only, "ab", tmp_path)[1] == ["adreno 24"]
    # Nobody answers: the manifest counts.
    assert plan(survey({"a": None, "b": NO_DRIVER}), "ab", tmp_path)[1] == ["mali 8"]


def test_only_those_are_asked_for_whose_gpu_something_is_compiled(tmp_path: Path):
    members = [
        Member("a", "rpi5", "h", device="both"),
        Member("b", "rpi5", "h"),
        Member("c", "rpi4", "h", device="vulkan"),
        Member("d", "rpi5", "h", model="x.edgellm", device="both"),
    ]

    def asked(**said: Any) -> list[tuple[str, str]]:
        args = argparse.Namespace(**{"model": None, "scheme": None, "device": None, "gpu_layers": None, **said})
        named = [replace(member, model=member.model or "Model") for member in members]
        wished = fleet_plan.wishes(args, Fleet(tmp_path, tuple(named)), named)
        return [(each.member.name, each.device) for each in fleet_plan.gpu_wishes(args, wished)]

    assert asked() == [("a", "both"), ("c", "vulkan")]
    assert asked(device="cpu") == []
    assert asked(device="vulkan") == [("a", "vulkan"), ("b", "vulkan"), ("c", "vulkan")]
    assert asked(gpu_layers=2) == [("a", "split"), ("b", "split"), ("c", "split")]
    fleet = Fleet(tmp_path, ())
    here = Asked(Member("a", "local"), load_board("local"), "both")  # its driver is asked when it is compiled for
    assert fleet_gpu.ask(fleet, [here], parallel=1, check=False, quiet=True) == (Survey(), None)


def test_what_could_not_end_well_is_refused_before_anything_is_compiled():
    answers = {"a": says(), "b": NO_DRIVER, "c": says()}
    one = survey(answers, "vulkan")
    fleet_gpu.refuse(one, 1)
    with pytest.raises(UnsuitableError, match="1 of 3 boards have no GPU that could compute: b: no Vulkan driver; "):
        fleet_gpu.refuse(one, 0)
    fleet_gpu.refuse(survey(answers, "both"), 0)  # which falls back
    with pytest.raises(UnsuitableError, match="2 of 2 boards"):  # the canary among them
        fleet_gpu.refuse(survey({"a": NO_DRIVER, "b": NO_DRIVER}, "split"), 5)
    fleet_gpu.refuse(survey({"a": NO_DRIVER, "b": None}, "vulkan"), 1)  # who knows what b has
    # Within the budget, a rehearsal says what would become of it.
    states = {name: BoardState(name, state=SAME) for name in answers}
    fleet_gpu.rehearse(one, rollout := Rollout(states, [3], 3, Path("log")))
    assert [board.name for board in rollout.of(FAILED)] == ["b"]
    assert states["b"].text == "no GPU could compute: no Vulkan driver"


def test_boards_with_a_name_keep_what_their_drivers_said():
    add_instance(Instance.at("kitchen", "orangepi5", "pi@kitchen.local:2222"))
    add_instance(Instance.at("hall", "orangepi5", "pi@hall.local"))
    board = load_board("orangepi5")
    asked = [
        Asked(Member(name, "orangepi5", host), board, "both")
        for name, host in (("oven", "pi@kitchen.local:2222"), ("hall", "pi@elsewhere.local"))
    ]
    section = replace(board.gpu(), storage_buffers=99)
    fleet_gpu._remember(asked, {"oven": section, "hall": section})
    assert find_board("kitchen").gpu() == section
    assert find_board("hall").gpu() == board.gpu()  # another one of that name
    fleet_gpu._remember(asked, {"oven": None, "hall": None})
    assert find_board("kitchen").gpu() == section
