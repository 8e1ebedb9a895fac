"""Deploying to a fake board: what is sent, what is kept, and that a failure at any point leaves the old model whole.

The way to the board is not there; the board's store, its slots and its lock are the real program's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.board_session import Survey, ask_once, proven_bytes, read_survey
from edgellm.bundle import Bundle
from edgellm.deployment import Deployment, Reporter, deploy
from edgellm.errors import EdgeError, LinkError, RuntimeFailedError, UnsuitableError
from edgellm.fake import FakeRemote
from edgellm.probe import Facts, probe
from edgellm.remote import Process
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


def store(board: FakeRemote) -> Path:
    return board.home / ".edgellm/store"


def damage(path: Path) -> None:
    """Other bytes of the same number in a file, under all of its names: not what an editor does, but a failing card."""
    with path.open("r+b") as file:
        n_bytes = path.stat().st_size
        file.write(b"x" * n_bytes)


def collected(board: FakeRemote, *bundles: Bundle) -> bool:
    """True if gc leaves exactly the files of these bundles."""
    ask_once(FakeRemote(board.home), str(board.home), "gc")
    wanted = {file.sha256 for bundle in bundles for file in bundle.files} | {bundle.sha256 for bundle in bundles}
    slots = {bundle.sha256[:16] for bundle in bundles}
    links = {"current", "previous"} if len(bundles) > 1 else {"current"}
    return {path.name for path in store(board).iterdir()} == wanted and entries(board) == slots | links


def works(board: FakeRemote, bundle: Bundle) -> bool:
    """True if the board's current model is this bundle and passes its own check."""
    current = model(board) / "current"
    if not current.is_dir() or current.resolve().name != bundle.sha256[:16]:
        return False
    return FakeRemote(board.home).run([str(current / "edgellm-rt"), "verify", str(current)]).status == 0


def test_first_deployment_sends_everything(board: FakeRemote, first: Bundle) -> None:
    done = deploy(first, board)
    assert works(board, first)
    different = {file.sha256: file.n_bytes for file in first.files}  # plan.json and the index are the same two bytes
    assert done.sent_bytes == sum(different.values()) + (first.path / "manifest.json").stat().st_size
    assert collected(board, first)
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
    assert entries(board) == {"current", "previous", second.sha256[:16], first.sha256[:16]}
    third = deploy(first, board)  # still there
    assert third.sent_bytes == 0
    assert collected(board, first, second)


def test_a_file_damaged_on_the_board_is_sent_again(board: FakeRemote, first: Bundle, second: Bundle) -> None:
    deploy(first, board)
    layer = model(board) / "current/weights/layer.0.safetensors"
    damage(layer)
    done = deploy(second, board)
    assert works(board, second)
    assert done.sent_bytes > 16384


def test_a_damaged_copy_of_the_same_bundle_is_mended(board: FakeRemote, first: Bundle) -> None:
    deploy(first, board)
    damage(model(board) / "current/kernels.so")
    assert not deploy(first, board).unchanged
    assert works(board, first)
    assert entries(board) == {"current", first.sha256[:16]}


def test_verify_finds_damaged_weights_of_the_same_bundle(board: FakeRemote, first: Bundle) -> None:
    deploy(first, board)
    layer = model(board) / "current/weights/layer.0.safetensors"
    damage(layer)
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
    assert len(trial.commands) >= 2
    for index in range(len(trial.commands)):
        yield index, board(f"home{index}")


def test_whichever_command_fails_the_old_model_works(tmp_path: Path, first: Bundle, second: Bundle) -> None:
    for index, board in boards_with(first, second, tmp_path):
        board.fail_at_command = index
        with pytest.raises(EdgeError):
            deploy(second, board)
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
        assert collected(again, first, second)


def test_wherever_bytes_stop_the_old_model_works_and_the_next_attempt_sends_the_rest(
    tmp_path: Path, first: Bundle, second: Bundle
) -> None:
    template = FakeRemote(tmp_path / "template")
    template.home.mkdir()
    deploy(first, template)
    n_bytes = 19_000
    for number, stop in enumerate(range(0, n_bytes, 1700)):
        home = tmp_path / f"bytes{number}"
        subprocess.run(["cp", "-a", str(template.home), str(home)], check=True)  # hard links stay hard links
        board = FakeRemote(home)
        board.drop_at_byte = stop
        with pytest.raises(LinkError):
            deploy(second, board)
        assert works(board, first), f"byte {stop}"
        again = FakeRemote(home)
        deploy(second, again)
        assert works(again, second), f"byte {stop}"
        assert collected(again, first, second)


def interrupted(board: FakeRemote, bundle: Bundle, at_byte: int) -> Path:
    """The unfinished file that an interrupted deployment of `bundle` leaves."""
    board.drop_at_byte = at_byte
    with pytest.raises(LinkError):
        deploy(bundle, board)
    (part,) = store(board).glob("*.part")
    return part


def test_a_broken_transfer_goes_on_at_the_byte(board: FakeRemote, tmp_path: Path) -> None:
    big = make_bundle(tmp_path / "big", {"weights/layer.1.safetensors": os.urandom(4_500_000)})
    n_there = interrupted(board, big, 3_000_000).stat().st_size
    assert n_there > 2_500_000
    again = FakeRemote(board.home)
    done = deploy(big, again)
    assert works(again, big)
    assert done.sent_bytes < 4_500_000 - n_there + 10_000
    assert collected(again, big)


def test_a_torn_block_of_an_earlier_attempt_is_noticed(board: FakeRemote, tmp_path: Path) -> None:
    """A power cut can leave zeros where data should be: what is before them is kept."""
    big = make_bundle(tmp_path / "big", {"weights/layer.1.safetensors": os.urandom(4_500_000)})
    part = interrupted(board, big, 3_000_000)
    with part.open("r+b") as file:
        file.seek(2_300_000)
        file.write(bytes(1000))
    again = FakeRemote(board.home)
    done = deploy(big, again)
    assert works(again, big)
    assert 4_500_000 - (2 << 20) <= done.sent_bytes < 4_500_000 - (2 << 20) + 40_000


def test_bytes_are_proven_by_blocks(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 10)
    digests = [hashlib.sha256(file.read_bytes()[at : at + 1000]).hexdigest() for at in range(0, 2560, 1000)]
    assert proven_bytes(file, digests, 2560, 1000) == 2560
    assert proven_bytes(file, digests[:2], 2000, 1000) == 2000
    assert proven_bytes(file, [digests[0], digests[2], digests[1]], 2560, 1000) == 1000
    tail = hashlib.sha256(file.read_bytes()[1000:1234]).hexdigest()
    assert proven_bytes(file, [digests[0], tail], 1234, 1000) == 1234
    assert proven_bytes(file, [digests[0], tail], 1235, 1000) == 1000
    assert proven_bytes(file, [*digests, digests[0]], 9999, 1000) == 2560  # never more than there is


# ---- the store and its stamps ----


def survey(board: FakeRemote) -> Survey:
    return read_survey(ask_once(FakeRemote(board.home), str(board.home), "survey"), "fake")


def test_linking_into_a_second_slot_does_not_make_the_first_hash_again(
    board: FakeRemote, first: Bundle, second: Bundle
) -> None:
    deploy(first, board)
    assert survey(board).models["tiny"].slots[first.sha256[:16]].verified
    deploy(second, board)
    deploy(second, board, name="other")
    ask_once(board, str(board.home), "undeploy", "other")  # unlinking changes the ctime too
    slots = survey(board).models["tiny"].slots
    assert len(slots) == 2
    assert all(slot.verified for slot in slots.values())


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_tampered_weight_is_not_vouched_for_by_linking_it_again(
    board: FakeRemote, first: Bundle, second: Bundle, keep_times: bool
) -> None:
    """Tampered with before the second deployment, mtime set back: the ctime tells, and must not be renewed."""
    deploy(first, board)
    layer = model(board) / "current/weights/layer.0.safetensors"
    times = layer.stat()
    damage(layer)
    if keep_times:
        os.utime(layer, ns=(times.st_atime_ns, times.st_mtime_ns))
    deploy(second, board)  # found while verifying, and sent again
    slots = survey(board).models["tiny"].slots
    assert slots[second.sha256[:16]].verified
    assert not slots[first.sha256[:16]].verified
    assert works(board, second)


def test_a_store_on_another_file_system_costs_copies_and_says_so(tmp_path: Path, first: Bundle, second: Bundle) -> None:
    """No hard links between the store and the slots: here because they lie on two file systems."""
    (tmp_path / "home").mkdir()
    with NoHardLinks(tmp_path / "home") as board:
        notes = Notes()
        deploy(first, board, reporter=notes)
        assert "no hard links" in notes.said
        deploy(second, board)
        for bundle in (first, second):
            folder = f"{board.home}/.edgellm/models/tiny/{bundle.sha256[:16]}"
            assert board.run([f"{folder}/edgellm-rt", "verify", folder]).status == 0
        refused = deploy(second, board)
        assert refused.sent_bytes == 0


class NoHardLinks(FakeRemote):
    """A board whose store is a mount of its own, in a mount name space."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        script = (
            'mkdir -p "$HOME/.edgellm/store"; mount -t tmpfs -o size=8m tmpfs "$HOME/.edgellm/store" '
            "&& echo mounted && exec sleep 600"
        )
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
        self._holder = subprocess.Popen(command, env={**os.environ, "HOME": str(home)}, stdout=subprocess.PIPE)
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"mounted\n"
        self._prefix = ["nsenter", "-t", str(self._holder.pid), "--user", "--mount", "--preserve-credentials", "--"]

    def start(self, argv: Sequence[str], *, silence_s: float = 60.0) -> Process:
        return super().start([*self._prefix, *argv], silence_s=silence_s)

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


# ---- proof ----


def test_wrong_golden_tokens_stop_the_switch(board: FakeRemote, tmp_path: Path, first: Bundle) -> None:
    deploy(first, board)
    wrong = make_bundle(tmp_path / "wrong", {"plan.json": b'{"golden fails": 1}'})
    with pytest.raises(RuntimeFailedError, match="golden prompt 0") as caught:
        deploy(wrong, board)
    assert caught.value.name == "KERNEL_FAILED"
    assert works(board, first)
    assert entries(board) == {"current", first.sha256[:16]}


class Notes(Reporter):
    said = ""

    def note(self, text: str) -> None:
        self.said += text


def test_a_model_slower_than_its_card_is_not_switched_to(board: FakeRemote, tmp_path: Path, first: Bundle) -> None:
    deploy(first, board)
    slow = make_bundle(tmp_path / "slow", card={"decode_tok_s": 100.0})  # the stand-in's bench says 10
    with pytest.raises(RuntimeFailedError, match=r"10\.00 tokens/s, and its card promises at least 70\.00"):
        deploy(slow, board)
    assert works(board, first)
    good = make_bundle(tmp_path / "good", card={"decode_tok_s": 11.0, "prefill_tok_s": 100.0})
    assert deploy(good, board).proof["decode_tok_s"] == 10.0
    assert works(board, good)


def test_a_model_larger_than_its_card_is_not_switched_to(board: FakeRemote, tmp_path: Path, first: Bundle) -> None:
    deploy(first, board)
    large = make_bundle(tmp_path / "large", provenance={"ballast_bytes": 150_000_000})
    with pytest.raises(RuntimeFailedError, match=r"took 1\d\d\.\d MB of memory .* at most 67\.\d MB"):
        deploy(large, board)
    assert works(board, first)
    owned = make_bundle(tmp_path / "owned", provenance={"ballast_bytes": 150_000_000}, card={"peak_rss_bytes": 1.4e8})
    deploy(owned, board)
    assert works(board, owned)


def facts(board: FakeRemote, **changes: object) -> Facts:
    return replace(probe(board), **changes)  # type: ignore[arg-type]


def refused(board: FakeRemote, bundle: Bundle, said: str, **changes: object) -> None:
    known = facts(board, **changes)
    with pytest.raises(UnsuitableError, match=said):
        deploy(bundle, board, facts=known)
    assert board.sent_bytes == 0
    assert not (board.home / ".edgellm").exists()


def test_a_board_that_does_not_fit_is_refused_before_the_first_byte(
    board: FakeRemote, tmp_path: Path, first: Bundle
) -> None:
    refused(board, first, "runs riscv64 programs", arch="riscv64")
    refused(board, first, r"needs 8\.\d MB of memory on fake, which has 1.0 MB", memory_bytes=1_000_000)
    refused(board, first, r"1\.\d MB are needed in .*, 100.0 kB are free", disk_free_bytes=100_000)
    needy = make_bundle(tmp_path / "needy", target={"cpu_features": ["amx_unobtainable"]})
    refused(board, needy, "lacks amx_unobtainable")


def test_little_free_memory_is_a_warning(board: FakeRemote, first: Bundle) -> None:
    notes = Notes()
    deploy(first, board, facts=facts(board, memory_available_bytes=1_000_000), reporter=notes)
    assert "1.0 MB are available" in notes.said


def test_a_damaged_manifest_on_the_board_costs_only_time(board: FakeRemote, first: Bundle, second: Bundle) -> None:
    deploy(first, board)
    damage(model(board) / "current/manifest.json")
    done: Deployment = deploy(second, board)
    assert works(board, second)
    assert done.sent_bytes < 20_000  # the store needs no manifest to know what it has


def test_a_program_without_execute_bits_runs_after_deployment(board: FakeRemote, tmp_path: Path, first: Bundle) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(first.path, copy)
    (copy / "edgellm-rt").chmod(0o644)
    deploy(copy, board)
    assert works(board, first)
