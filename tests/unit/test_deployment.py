"""Deploying to a fake board: what is sent, what is kept, and that a failure at any point leaves the old model whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.bundle import Bundle
from edgellm.deployment import Deployment, Reporter, deploy
from edgellm.errors import EdgeError, LinkError, RuntimeFailedError, UnsuitableError
from edgellm.fake import FakeRemote
from edgellm.probe import Facts, probe
from tests.standin import make_bundle


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: real flushes to a disk would make these tests slow."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def board(tmp_path: Path) -> FakeRemote:
    home = tmp_path / "home of 'pi'"  # every path on the board then needs quoting
    home.mkdir()
    return FakeRemote(home)


@pytest.fixture
def first(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "first")


@pytest.fixture
def second(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "second", {"weights/layer.1.safetensors": b"two" * 6000})


def model(board: FakeRemote) -> Path:
    return board.home / ".edgellm/models/tiny"


def entries(board: FakeRemote) -> set[str]:
    return {entry.name for entry in model(board).iterdir()} if model(board).exists() else set()


def works(board: FakeRemote, bundle: Bundle) -> bool:
    """True if the board's current model is this bundle and passes its own check."""
    current = model(board) / "current"
    if not current.is_dir() or current.resolve().name != bundle.sha256[:16]:
        return False
    return FakeRemote(board.home).run([str(current / "edgellm-rt"), "verify", str(current)]).status == 0


def test_first_deployment_sends_everything(board: FakeRemote, first: Bundle) -> None:
    done = deploy(first, board)
    assert works(board, first)
    assert done.sent_bytes == first.n_bytes + sum(
        (first.path / n).stat().st_size for n in ("manifest.json", "manifest.sha256")
    )
    assert entries(board) == {"current", first.sha256[:16]}
    assert not done.unchanged


def test_nothing_changed_sends_nothing(board: FakeRemote, first: Bundle) -> None:
    deploy(first, board)
    done = deploy(first, board)
    assert done.unchanged
    assert done.sent_bytes == 0


def test_only_what_differs_is_sent_and_the_rest_is_linked(board: FakeRemote, first: Bundle, second: Bundle) -> None:
    deploy(first, board)
    inode = (model(board) / "current/weights/layer.0.safetensors").stat().st_ino
    done = deploy(second, board)
    assert works(board, second)
    assert done.sent_bytes < 18000 + 4000  # the changed layer and the manifest
    assert (model(board) / "current/weights/layer.0.safetensors").stat().st_ino == inode
    assert entries(board) == {"current", second.sha256[:16]}


def test_a_file_damaged_on_the_board_is_sent_again(board: FakeRemote, first: Bundle, second: Bundle) -> None:
    deploy(first, board)
    layer = model(board) / "current/weights/layer.0.safetensors"
    layer.write_bytes(b"x" * layer.stat().st_size)
    done = deploy(second, board)
    assert works(board, second)
    assert done.sent_bytes > 16384


def test_a_damaged_copy_of_the_same_bundle_is_mended(board: FakeRemote, first: Bundle) -> None:
    deploy(first, board)
    (model(board) / "current/kernels.so").write_bytes(b"\x7fELF kernelS")
    assert not deploy(first, board).unchanged
    assert works(board, first)
    assert entries(board) == {"current", first.sha256[:16]}


def test_verify_finds_damaged_weights_of_the_same_bundle(board: FakeRemote, first: Bundle) -> None:
    deploy(first, board)
    layer = model(board) / "current/weights/layer.0.safetensors"
    layer.write_bytes(b"x" * layer.stat().st_size)
    deploy(first, board, verify=True)
    assert works(board, first)


def test_two_names_are_two_models(board: FakeRemote, first: Bundle, second: Bundle) -> None:
    deploy(first, board)
    deploy(second, board, name="it's another; name")
    assert works(board, first)
    assert (board.home / ".edgellm/models/it-s-another-name/current/plan.json").is_file()


class Interrupting(Reporter):
    """Presses Ctrl-C after so many bytes."""

    def __init__(self, after_bytes: int) -> None:
        self.left_bytes = after_bytes

    def transferred(self, n_bytes: int) -> None:
        self.left_bytes -= n_bytes
        if self.left_bytes < 0:
            raise KeyboardInterrupt


def test_ctrl_c_leaves_the_old_model_and_nothing_else(board: FakeRemote, first: Bundle, second: Bundle) -> None:
    deploy(first, board)
    with pytest.raises(KeyboardInterrupt):
        deploy(second, board, reporter=Interrupting(10000))
    assert works(board, first)
    assert entries(board) == {"current", first.sha256[:16]}


def boards_with(first: Bundle, second: Bundle, tmp_path: Path) -> Iterator[tuple[int, FakeRemote]]:
    """For each command that replacing `first` by `second` takes: its number, and a board that has `first`."""
    template = FakeRemote(tmp_path / "template")
    template.home.mkdir()
    deploy(first, template)

    def board(name: str) -> FakeRemote:
        shutil.copytree(template.home, tmp_path / name, symlinks=True)
        return FakeRemote(tmp_path / name)

    trial = board("trial")
    deploy(second, trial)
    assert len(trial.commands) > 6
    for index in range(len(trial.commands)):
        yield index, board(f"home{index}")


def test_whichever_command_fails_the_old_model_works(tmp_path: Path, first: Bundle, second: Bundle) -> None:
    for index, board in boards_with(first, second, tmp_path):
        board.fail_at_command = index
        with pytest.raises(EdgeError):
            deploy(second, board)
        # The last command switches over; failed as a whole, it has not.
        assert works(board, first), f"command {index}"
        assert entries(board) == {"current", first.sha256[:16]}, f"command {index} left something behind"


def test_wherever_the_connection_breaks_the_old_model_works_and_the_next_attempt_succeeds(
    tmp_path: Path, first: Bundle, second: Bundle
) -> None:
    for index, board in boards_with(first, second, tmp_path):
        board.drop_at_command = index
        with pytest.raises(LinkError):
            deploy(second, board)
        assert works(board, first), f"command {index}"
        again = FakeRemote(board.home)
        deploy(second, again)
        assert works(again, second), f"command {index}"
        assert entries(again) == {"current", second.sha256[:16]}


def test_a_broken_transfer_goes_on_where_it_stopped(board: FakeRemote, tmp_path: Path) -> None:
    big = make_bundle(tmp_path / "big", {"weights/layer.1.safetensors": bytes(2_000_000)})
    board.drop_at_byte = 1_000_000
    with pytest.raises(LinkError):
        deploy(big, board)
    again = FakeRemote(board.home)
    done = deploy(big, again)
    assert works(again, big)
    assert done.sent_bytes < 1_400_000


def test_a_torn_piece_of_an_earlier_attempt_is_noticed(board: FakeRemote, tmp_path: Path) -> None:
    """A power cut can leave zeros where data should be; the checksum finds it and the file is sent again."""
    big = make_bundle(tmp_path / "big", {"weights/layer.1.safetensors": b"data" * 500_000})
    board.drop_at_byte = 1_000_000
    with pytest.raises(LinkError):
        deploy(big, board)
    part = model(board) / f"{big.sha256[:16]}.part/weights/layer.1.safetensors"
    part.write_bytes(bytes(part.stat().st_size))
    again = FakeRemote(board.home)
    deploy(big, again)
    assert works(again, big)


def test_wrong_golden_tokens_stop_the_switch(board: FakeRemote, tmp_path: Path, first: Bundle) -> None:
    deploy(first, board)
    wrong = make_bundle(tmp_path / "wrong", {"plan.json": b'{"golden fails": 1}'})
    with pytest.raises(RuntimeFailedError, match="golden prompt 0") as caught:
        deploy(wrong, board)
    assert caught.value.name == "KERNEL_FAILED"
    assert works(board, first)
    assert entries(board) == {"current", first.sha256[:16]}


def facts(board: FakeRemote, **changes: object) -> Facts:
    return replace(probe(board), **changes)  # type: ignore[arg-type]


def refused(board: FakeRemote, bundle: Bundle, said: str, **changes: object) -> None:
    known = facts(board, **changes)
    with pytest.raises(UnsuitableError, match=said):
        deploy(bundle, board, facts=known)
    assert board.sent_bytes == 0
    assert not model(board).exists()


def test_a_board_that_does_not_fit_is_refused_before_the_first_byte(
    board: FakeRemote, tmp_path: Path, first: Bundle
) -> None:
    refused(board, first, "runs riscv64 programs", arch="riscv64")
    refused(board, first, r"needs 8\.\d MB of memory on fake, which has 1.0 MB", memory_bytes=1_000_000)
    refused(board, first, r"1\.\d MB are needed in .*, 100.0 kB are free", disk_free_bytes=100_000)
    needy = make_bundle(tmp_path / "needy", target={"cpu_features": ["amx_unobtainable"]})
    refused(board, needy, "lacks amx_unobtainable")


def test_little_free_memory_is_a_warning(board: FakeRemote, first: Bundle) -> None:
    class Notes(Reporter):
        said = ""

        def note(self, text: str) -> None:
            self.said += text

    notes = Notes()
    deploy(first, board, facts=facts(board, memory_available_bytes=1_000_000), reporter=notes)
    assert "1.0 MB are available" in notes.said


def test_a_damaged_manifest_on_the_board_costs_only_time(board: FakeRemote, first: Bundle, second: Bundle) -> None:
    deploy(first, board)
    (model(board) / "current/manifest.json").write_bytes(b"{not json")
    done: Deployment = deploy(second, board)
    assert works(board, second)
    assert done.kept_bytes == 0


def test_a_program_without_execute_bits_runs_after_deployment(board: FakeRemote, tmp_path: Path, first: Bundle) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(first.path, copy)
    (copy / "edgellm-rt").chmod(0o644)
    deploy(copy, board)
    assert works(board, first)
