"""A fleet of twenty boards, each a real SSH server with a home of its own, rolled out to by the real Ansible.

Three of them fail in three ways: one is off, one has no space, one trusts another key.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.bundle import Bundle
from edgellm.compile import build
from edgellm.golden import host_target
from edgellm.precision import Options
from tests.caches import own_cache
from tests.compile.test_vulkan_faults import faulty_loader
from tests.emulated.conftest import free_port
from tests.emulated.fleet_boards import Boards, running_boards, slot
from tests.server import MODEL
from tests.shaders import only_lavapipe
from tests.standin import make_bundle

OFF, FULL, DISTRUSTING = 2, 6, 9
"""In the second wave, and twice in the third, of 1, 3, 8 and 8 boards."""
BROKEN = {OFF, FULL, DISTRUSTING}
WAVES = ("--waves", "1,3,8")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is such a thing: twenty boards flush a lot."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def boards(folder: Path) -> Iterator[Boards]:
    with running_boards(folder, 20, small=(FULL,)) as running:
        yield running


@pytest.fixture(scope="module")
def old(folder: Path) -> Bundle:
    return make_bundle(folder / "old")


@pytest.fixture(scope="module")
def new(folder: Path) -> Bundle:
    """Another model by the same name, which the small disk has no room for beside the old one."""
    return make_bundle(folder / "new", {"weights/layer.1.safetensors": os.urandom(600_000)})


def states(answer: dict[str, dict[str, dict[str, object]]]) -> dict[str, list[int]]:
    """Numbers of boards by state."""
    found: dict[str, list[int]] = {}
    for name, board in answer["boards"].items():
        found.setdefault(str(board["state"]), []).append(int(name.removeprefix("board")))
    return {state: sorted(numbers) for state, numbers in found.items()}


def reasons(answer: dict[str, dict[str, dict[str, object]]]) -> str:
    """Why boards failed, for an assertion that does not hold."""
    return "; ".join(f"{name}: {board['why']}" for name, board in answer["boards"].items() if board["why"])


def test_a_rollout_from_the_first_board_to_the_last(boards: Boards, old: Bundle, new: Bundle, folder: Path) -> None:
    everybody = list(range(20))
    fleet = ("--fleet", str(boards.fleet))

    # A rehearsal finds out what would happen, and leaves no trace.
    before = [board.files() for board in boards.all]
    rehearsal = boards.edgellm("deploy", *fleet, "--group", "left", str(old.path), "--check", "--diff")
    assert rehearsal.returncode == 0, rehearsal.stdout + rehearsal.stderr
    assert re.search(r"change +10: board00, board01", rehearsal.stdout)
    assert f"+version: {slot(old)}" in rehearsal.stdout
    assert rehearsal.stdout.count("+version:") == 1  # ten boards, one difference
    assert [board.files() for board in boards.all] == before

    # All of them are well: they get the first model.
    first = boards.edgellm("deploy", *fleet, str(old.path), *WAVES, "--json")
    assert first.returncode == 0, first.stdout + first.stderr
    assert states(json.loads(first.stdout)) == {"changed": everybody}
    assert boards.versions() == [slot(old)] * 20

    # Three boards break. One failure is allowed; the second wave has it, and the third one more than that.
    boards[OFF].stop()
    assert boards[FULL].disk is not None
    boards[FULL].disk.leave(1_200_000)
    boards[DISTRUSTING].pin_another_key(folder)
    stopped = boards.edgellm("deploy", *fleet, str(new.path), *WAVES, "--max-failures", "1")
    assert stopped.returncode == 4, stopped.stdout + stopped.stderr
    reached = {n for n in range(12) if n not in BROKEN}
    assert boards.versions() == [slot(new) if n in reached else slot(old) for n in everybody], stopped.stdout
    # Which board has what, why, and what to type next.
    said = stopped.stdout
    assert "stopped after wave 3 of 4, for the budget is used up: 3 of 20 boards failed, 1 were allowed to" in said
    assert re.search(r"new +9: board00, board01, board03, .*, board11\n", said)
    assert re.search(r"old model +11: board02, board06, board09, board12, .*, board19\n", said)
    assert re.search(r"board02 +127.0.0.1 port \d+ refuses connections", said)
    assert re.search(r"board06 +no space on board06", said)
    assert re.search(r"board09 .*only takes bundles by its pinned keys", said)
    assert f"edgellm deploy --fleet {boards.fleet} --max-failures 1 --waves 1,3,8 {new.path}" in said
    assert f"edgellm rollback --fleet {boards.fleet} --from {slot(new)}" in said

    # Three may fail: all the others get it.
    allowed = boards.edgellm("deploy", *fleet, str(new.path), *WAVES, "--max-failures", "15%", "--json")
    answer = json.loads(allowed.stdout)
    assert allowed.returncode == 3
    assert not answer["stopped"]
    assert states(answer) == {
        "same": sorted(reached),
        "changed": list(range(12, 20)),
        "unreachable": [OFF],
        "failed": [FULL, DISTRUSTING],
    }, reasons(answer)
    assert boards.versions() == [slot(old) if n in BROKEN else slot(new) for n in everybody]
    status = boards.edgellm("status", *fleet, "--group", "left")
    assert status.returncode == 3  # one is off
    assert re.search(rf"in use +tiny {slot(new)} on 7: ", status.stdout)
    assert re.search(rf"in use +tiny {slot(old)} on 2: board06, board09", status.stdout)

    # They are mended: only they change.
    boards[OFF].start()
    boards[FULL].disk.leave(4_000_000)
    boards[DISTRUSTING].unpin()
    mended = boards.edgellm("deploy", *fleet, str(new.path), "--json")
    assert mended.returncode == 0, reasons(json.loads(mended.stdout))
    assert states(json.loads(mended.stdout)) == {
        "changed": sorted(BROKEN),
        "same": [n for n in everybody if n not in BROKEN],
    }

    # Ansible itself, and once more: nothing changes.
    contents = [board.files() for board in boards.all]
    recap = boards.ansible("playbook", "-i", str(boards.inventory), str(playbook(folder, new)))
    assert recap.returncode == 0, recap.stdout + recap.stderr
    assert len(re.findall(r"board\d\d .*ok=1 +changed=0 +unreachable=0 +failed=0", recap.stdout)) == 20
    assert [board.files() for board in boards.all] == contents

    # Back again, where the version is in use: first on one board, then on all of its group.
    back = boards.edgellm("rollback", *fleet, "--from", slot(new), "--group", "board03", "--json")
    assert states(json.loads(back.stdout)) == {"changed": [3]}
    rest = json.loads(boards.edgellm("rollback", *fleet, "--from", slot(new)[:8], "--group", "left", "--json").stdout)
    assert states(rest) == {"same": [3], "changed": [n for n in range(10) if n != 3]}, reasons(rest)
    assert boards.versions() == [slot(old)] * 10 + [slot(new)] * 10


def playbook(folder: Path, bundle: Bundle) -> Path:
    path = folder / "own.yml"
    path.write_text(f"""\
- hosts: kitchens
  gather_facts: false
  serial: [1, "50%"]
  max_fail_percentage: 10
  tasks:
    - edgellm.board.deploy:
        bundle: {bundle.path}
""")
    return path


@pytest.fixture(scope="module")
def three(folder: Path) -> Iterator[Boards]:
    (folder / "three").mkdir()
    with running_boards(folder / "three", 3) as running:
        yield running


def test_an_inventory_of_ansibles_and_its_own_command(three: Boards, old: Bundle, new: Bundle) -> None:
    fleet = ("--fleet", str(three.inventory))
    first = json.loads(three.edgellm("deploy", *fleet, str(old.path), "--name", "from-ansible", "--json").stdout)
    assert states(first) == {"changed": [0, 1, 2]}, reasons(first)
    assert {board.version("from-ansible") for board in three.all} == {slot(old)}
    assert first["boards"]["board01"]["group"] == "kitchens"

    # The playbook of the collection; here, all of a wave fails, and no budget helps.
    argv = ("playbook", "edgellm.board.deploy", "-i", str(three.inventory), "-e", "edgellm_name=from-ansible")
    done = three.ansible(*argv, "-e", f"edgellm_bundle={new.path}", "--diff")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("changed=1") == 3
    assert f"-version: {slot(old)}" in done.stdout
    assert f"+version: {slot(new)}" in done.stdout
    wrong = three.ansible(*argv, "-e", f"edgellm_bundle={new.path}/absent")
    assert wrong.returncode == 2
    assert "absent is not a directory; name a bundle" in wrong.stdout + wrong.stderr
    assert "board01" not in wrong.stdout

    look = three.ansible("playbook", "-i", str(three.inventory), str(undeploying(three)), "-v")
    assert look.returncode == 0, look.stdout + look.stderr
    assert f"'from-ansible': '{slot(new)}'" in look.stdout.replace('"', "'")
    assert {board.version("from-ansible") for board in three.all} == {None}


def undeploying(boards: Boards) -> Path:
    """Looks, takes the model away, takes it away again, and collects what nobody needs."""
    path = boards.folder / "undeploy.yml"
    path.write_text("""\
- hosts: all
  gather_facts: false
  tasks:
    - edgellm.board.info:
    - edgellm.board.deploy: {name: from-ansible, state: absent}
      register: gone
    - edgellm.board.deploy: {name: from-ansible, state: absent}
      register: again
    - edgellm.board.gc:
    - ansible.builtin.assert:
        that: [gone is changed, again is not changed]
""")
    return path


def test_a_board_whose_service_fails_after_the_switch_is_told_apart(three: Boards, old: Bundle) -> None:
    """The stand-in's program cannot serve: the board has the new model, and its service is not well."""
    argv = ("deploy", "--fleet", str(three.fleet), str(old.path), "--name", "unwell", "--service", "--group", "board01")
    done = three.edgellm(*argv)
    assert done.returncode == 3, done.stdout + done.stderr
    assert re.search(r"failed +board01 +.*the server did not start", done.stdout)
    assert re.search(r"unwell +1: board01", done.stdout)
    assert "old model" not in done.stdout
    assert f"--from {slot(old)}" in done.stdout
    assert three[1].version("unwell") == slot(old)


def test_what_a_fleets_file_says_is_no_program(three: Boards, old: Bundle, tmp_path: Path) -> None:
    """Ansible evaluates templates wherever it may; a file of boards is data."""
    trap = tmp_path / "trap"
    template = "{{ lookup('pipe', 'touch " + str(trap) + "') }}"
    hostile = tmp_path / "hostile.toml"
    hostile.write_text(
        f'[groups.g]\ntype = "n100"\nname = "{template}"\nvars = {{ a = "{template}", b = ["{template}"] }}\n'
        '[groups.g.boards]\nboard00 = "board00"\n'
    )
    done = json.loads(three.edgellm("deploy", "--fleet", str(hostile), str(old.path), "--json").stdout)
    assert done["boards"]["board00"]["state"] == "changed", reasons(done)
    assert done["boards"]["board00"]["model"] == "trap"  # of a strange name, what can be one
    assert not trap.exists()


def test_the_boards_gpus_are_asked_and_the_bundle_is_for_all_of_them(three: Boards, tmp_path: Path) -> None:
    """GPUs that differ, played by lavapipe behind a loader that calls it one of Intel's; the third lacks too much."""
    driver = {"LD_LIBRARY_PATH": str(faulty_loader(tmp_path)), **only_lavapipe()}
    for board, fault in zip(three.all, ("buffers:1:20", "buffers:1:10", "api:1:0"), strict=True):
        board.set_environment({**driver, "FAULT": f"vendor:1:32902,{fault}"})
    own_cache(three.folder)
    before = [board.files() for board in three.all]
    argv = ("--device", "vulkan", "--scheme", "w4a8", "--name", "asked", "--max-failures", "1", "--check", "--json")
    rehearsal = three.edgellm("deploy", "--fleet", str(three.fleet), str(MODEL), *argv)
    assert rehearsal.returncode == 3, rehearsal.stdout + rehearsal.stderr
    assert [board.files() for board in three.all] == before  # the program that asks is gone again
    said = json.loads(rehearsal.stdout)
    (kind,) = said["gpus"]["kinds"]
    assert (kind["type"], kind["class"], kind["boards"]) == ("n100", "intel", ["board00", "board01"])
    assert kind["allows"]["storage_buffers"] == 10
    assert "lacks Vulkan 1.1" in said["gpus"]["not_counted"]["board02"]
    assert states(said) == {"changed": [0, 1], "failed": [2]}, reasons(said)
    assert "no GPU could compute" in said["boards"]["board02"]["why"]


def test_the_table_fits_the_terminal(three: Boards, old: Bundle) -> None:
    """On a terminal the table is drawn again and again, and the report stays."""
    import pty

    main, other = pty.openpty()
    command = [sys.executable, "-m", "edgellm", "deploy", "--fleet", str(three.fleet), str(old.path), "--name", "drawn"]
    environment = {**three.environment, "COLUMNS": "100", "LINES": "20", "TERM": "xterm"}
    with subprocess.Popen(command, env=environment, stdout=other, stderr=other, stdin=other) as process:
        os.close(other)
        drawn = b""
        while piece := read_terminal(main):
            drawn += piece
        process.wait()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    assert process.returncode == 0, text
    assert re.search(r"board +group +wave +state +sent +tok/s", text)
    assert "wave 1 of 3, 0 of 3 boards done, 0 failed, 0 may" in text
    assert "3 of 3 boards done" in text
    assert re.search(r"new +3: board00, board01, board02", text)


def read_terminal(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:  # what Linux says when the other end is closed
        return b""


def test_ctrl_c_accounts_for_every_board(three: Boards, tmp_path: Path) -> None:
    """Boards that were at work are named; the others keep what they have. Last here: one board goes on for a while."""
    slow = make_bundle(tmp_path / "slow", provenance={"golden_s": 60}, model={"name": "slow"})
    command = [sys.executable, "-m", "edgellm", "deploy", "--fleet", str(three.fleet), str(slow.path)]
    with subprocess.Popen(
        command, env=three.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        log = wait_for_stage(three, "golden")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, out + errors
    assert "interrupted" in out
    assert re.search(r"failed +board00 +interrupted while", out)
    assert re.search(r"old model +2: board01, board02", out)
    assert str(log) in out
    assert {board.version("slow") for board in three.all} == {None}


def wait_for_stage(boards: Boards, text: str) -> Path:
    """The newest record, once it says that a board does something with `text` in it."""
    folder = boards.folder / "host/.local/state/edgellm/rollouts"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for log in sorted(folder.glob("*.jsonl"))[-1:]:
            if any(text in line for line in log.read_text().splitlines() if '"stage"' in line):
                return log
        time.sleep(0.1)
    raise AssertionError(f"no board came to {text}")


@pytest.mark.skipif(host_target() is None, reason="this machine's CPU has none of the tiers")
def test_a_service_is_left_alone_once_it_is_as_wanted(
    three: Boards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real model on one board: made a service, and made another one only where that is asked for."""
    monkeypatch.setenv("EDGELLM_CACHE", own_cache(tmp_path / "cache"))
    bundle = build("random:tiny", "local", Options("w4a8")).bundle
    port, path = free_port(), three.folder / "service.yml"
    deploy = f"edgellm.board.deploy: {{bundle: {bundle.path}, name: served, service: true, port: {port}}}"
    service = f"edgellm.board.service: {{name: served, port: {port}, sessions: 2, keep: true}}"
    plain = f"edgellm.board.deploy: {{bundle: {bundle.path}, name: served, service: true}}"
    path.write_text(f"""\
- hosts: board02
  gather_facts: false
  tasks:
    - {deploy}
      register: first
    - {deploy}
      register: second
    - {service}
      check_mode: true
      register: rehearsed
    - {service}
      register: other
    - {service}
      register: again
    - {plain}
      register: deployed_again
    - edgellm.board.service: {{name: served, threads: 1}}
      register: one_thread
    - {service}
      register: still_the_same
    - edgellm.board.service: {{name: served, state: absent}}
      register: gone
    - edgellm.board.service: {{name: served, state: absent}}
      register: still_gone
    - ansible.builtin.assert:
        that:
          - first is changed and first.healthy
          - second is not changed and second.healthy
          - rehearsed is changed
          - other is changed and other.healthy
          - again is not changed and again.healthy
          - deployed_again is not changed and deployed_again.service.port == {port}
          - one_thread is changed and one_thread.healthy and one_thread.service.port == {port}
          - still_the_same is not changed
          - gone is changed
          - still_gone is not changed
""")
    done = three.ansible("playbook", "-i", str(three.inventory), str(path))
    assert done.returncode == 0, done.stdout + done.stderr
