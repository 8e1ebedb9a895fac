"""Tuning results: what counts for which board, and files that are not what they should be."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm import tuned
from edgellm.boards import load_board
from edgellm.errors import BoardError

ROOT = Path(__file__).resolve().parents[2]
KNOBS = {"tokens": 4, "groups": 2, "ahead": 0, "block": 1, "parts": 1}
GPU_KNOBS = {"threads": 64, "rows": 4, "tile": 1}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tuned.user_folder()


def test_a_result_is_found_again(user):
    board = load_board("rpi5")
    tuned.save(user / "rpi5.json", tuned.key_for(board, 4), {"linear.a": {"knobs": KNOBS}})
    tuned.save(user / "rpi5.json", tuned.key_for(board, 4), {"linear.b": {"knobs": {**KNOBS, "tokens": 8}}})
    assert tuned.lookup(board) == {"linear.a": KNOBS, "linear.b": {**KNOBS, "tokens": 8}}
    assert tuned.lookup(load_board("rpi4")) == {}
    assert tuned.lookup(load_board("virtual-rpi5")) == {}  # what emulation times says nothing of the board


def test_most_threads_win(user):
    board = load_board("rpi5")
    for threads, tokens in ((4, 4), (2, 2)):
        entry = {"linear.a": {"knobs": {**KNOBS, "tokens": tokens}}}
        tuned.save(user / "rpi5.json", tuned.key_for(board, threads), entry)
    assert tuned.lookup(board)["linear.a"]["tokens"] == 4


@pytest.mark.parametrize(
    "change", [{"tvm": "0.1"}, {"tier": "i8mm"}, {"soc": "another"}, {"cores": "1/4"}, {"template": 0}]
)
def test_what_was_found_elsewhere_does_not_count(user, change):
    board = load_board("rpi5")
    tuned.save(user / "rpi5.json", replace(tuned.key_for(board, 4), **change), {"linear.a": {"knobs": KNOBS}})
    assert tuned.lookup(board) == {}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "format"),
        ('{"format": 2, "results": []}', "format"),
        ('{"format": 1, "results": [{}]}', "results"),
        ('{"format": 1, "results": [{"key": {}, "kernels": {}}]}', "key"),
        ({"tokens": 4}, "knobs must be tokens, groups, ahead, block"),
        ({**KNOBS, "tokens": 0}, "tokens: 0 is out of range"),
        ({**KNOBS, "ahead": True}, "ahead: True is out of range"),
        ({**KNOBS, "groups": "2"}, "groups: '2' is out of range"),
    ],
)
def test_a_damaged_file_is_named(user, document, says):
    path = user / "rpi5.json"
    board = load_board("rpi5")
    if isinstance(document, str):
        path.parent.mkdir(parents=True)
        path.write_text(document)
    else:
        tuned.save(path, tuned.key_for(board, 4), {"linear.a": {"knobs": document}})
    with pytest.raises(BoardError, match=re.escape(says)) as error:
        tuned.lookup(board)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_results_of_a_gpu_are_its_own(user):
    board = load_board("orangepi5")
    tuned.save(user / "orangepi5.json", tuned.key_for(board, 4), {"linear.a": {"knobs": KNOBS}})
    tuned.save(user / "orangepi5.json", tuned.gpu_key_for(board), {"linear.b": {"knobs": GPU_KNOBS}})
    tuned.save(user / "orangepi5.json", tuned.gpu_key_for(board), {"attention.c": {"knobs": {"splits": 4}}})
    assert tuned.lookup(board) == {"linear.a": KNOBS}
    assert tuned.lookup(board, "vulkan") == {"linear.b": GPU_KNOBS, "attention.c": {"splits": 4}}
    assert tuned.lookup(load_board("virtual-orangepi5"), "vulkan") == {}


@pytest.mark.parametrize(
    "change", [{"tvm": "0.1"}, {"gpu": "another"}, {"schedule": "desktop"}, {"limits": "fewer"}, {"template": 0}]
)
def test_what_was_found_on_another_gpu_does_not_count(user, change):
    board = load_board("orangepi5")
    key = replace(tuned.gpu_key_for(board), **change)
    tuned.save(user / "orangepi5.json", key, {"linear.a": {"knobs": GPU_KNOBS}})
    assert tuned.lookup(board, "vulkan") == {}


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        (KNOBS, "knobs must be threads, rows, tile or threads, team, loads or splits"),
        ({**GPU_KNOBS, "splits": 2}, "knobs must be threads, rows, tile or threads, team, loads or splits"),
        ({**GPU_KNOBS, "tile": 0}, "tile: 0 is out of range"),
        ({"splits": 1e9}, "splits: 1000000000.0 is out of range"),
    ],
)
def test_damaged_results_of_a_gpu_are_named(user, knobs, says):
    board = load_board("orangepi5")
    path = user / "orangepi5.json"
    tuned.save(path, tuned.gpu_key_for(board), {"linear.a": {"knobs": knobs}})
    with pytest.raises(BoardError, match=re.escape(says)) as error:
        tuned.lookup(board, "vulkan")
    assert str(path) in str(error.value)
    path.write_text('{"format": 1, "results": [{"key": {"gpu": 1}, "kernels": {}}]}')
    with pytest.raises(BoardError, match="key: "):
        tuned.lookup(board)


def test_shipped_results_are_sound():
    for path in sorted((ROOT / "boards" / "tuned").glob("*.json")):
        assert tuned.read(path)
        load_board(path.stem)


def test_the_template_revisions_are_the_compilers():
    for path, revision in (
        ("kernels/linear.py", tuned.TEMPLATE_REVISION),
        ("gpu/knobs.py", tuned.GPU_TEMPLATE_REVISION),
    ):
        assert f"\nTEMPLATE_REVISION = {revision}\n" in (ROOT / "crosscompile" / path).read_text()


def test_knobs_are_those_of_the_template(user):
    source = (ROOT / "crosscompile/kernels/linear.py").read_text()
    fields = source[source.index("class LinearKnobs") : source.index("@kernel_maker")]
    assert set(re.findall(r"^    (\w+): int = ", fields, re.MULTILINE)) == set(KNOBS)


def test_results_of_earlier_revisions_are_kept_and_not_used(user):
    board = load_board("rpi5")
    old = replace(tuned.key_for(board, 4), template=2)
    knobs = {name: value for name, value in KNOBS.items() if name != "parts"}
    tuned.save(user / "rpi5.json", old, {"linear.a": {"knobs": knobs}})
    assert tuned.lookup(board) == {}


def test_files_are_json_for_people(user):
    path = user / "rpi5.json"
    tuned.save(path, tuned.key_for(load_board("rpi5"), 4), {"linear.a": {"knobs": KNOBS, "p": 0.01}})
    assert json.loads(path.read_text())["results"][0]["kernels"]["linear.a"]["p"] == 0.01
