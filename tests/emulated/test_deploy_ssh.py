"""deploy, run, chat and bench as commands over a real SSH server, with a stand-in for the model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from edgellm.board_session import BoardSession, ask_once
from edgellm.deployment import Reporter, deploy
from edgellm.errors import DiskFullError, EdgeError, LinkError, RuntimeFailedError, UnsuitableError
from edgellm.probe import probe
from edgellm.runtime_program import find_model
from edgellm.ssh import SshRemote
from tests.emulated.conftest import Link, SshServer
from tests.emulated.small_disk import SmallDisk
from tests.emulated.test_ssh import through
from tests.standin import make_bundle


@pytest.fixture
def environment(ssh_server: SshServer, tmp_path: Path) -> dict[str, str]:
    """For the command line: a home whose ~/.ssh reaches the server as `kitchen`."""
    home = tmp_path / "host home"
    (home / ".ssh").mkdir(parents=True)
    address = ssh_server.address
    (home / ".ssh/config").write_text(
        f"Host kitchen\n  HostName 127.0.0.1\n  Port {address.port}\n  User {address.user}\n"
        f"  IdentityFile {address.key_path}\n  UserKnownHostsFile {address.known_hosts_path}\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "SSH_", "EDGELLM_"))}
    return {**clean, "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}


def edgellm(environment: dict[str, str], *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgellm", *argv]
    return subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, timeout=120)


def test_from_deploy_to_chat(ssh_server: SshServer, environment: dict[str, str], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle dir")
    first = edgellm(environment, "deploy", str(bundle.path), "--board", "rpi5", "--host", "kitchen")
    assert first.returncode == 0, first.stderr
    assert re.search(r"sent +\d+\.\d kB in ", first.stdout)
    assert "edgellm chat --board rpi5" in first.stdout
    assert (ssh_server.home / ".edgellm/models/tiny/current/plan.json").is_file()

    second = edgellm(environment, "deploy", str(bundle.path), "--board", "rpi5", "--host", "kitchen", "--json")
    assert json.loads(second.stdout)["sent_bytes"] == 0

    # Where it is and what was deployed are remembered.
    prompt = 'it\'s "me" $HOME'
    answer = edgellm(environment, "run", "--board", "rpi5", "-p", prompt)
    assert (answer.returncode, answer.stdout) == (0, f"You said: {prompt}\n")
    assert "3 tokens" in answer.stderr

    talk = edgellm(environment, "chat", "--board", "rpi5", stdin="hello\n/reset\n/nonsense\n/quit\n")
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout == "You said: hello[2J\n"  # the escape character did not get through
    assert "there is no /nonsense" in talk.stderr

    bench = edgellm(environment, "bench", "--board", "rpi5")
    assert re.search(r"decode at 0 +auto, 4 +9\.0 tok/s +8\.0 – 10\.0 +2 +45%", bench.stdout)
    assert "123.5 MB" in bench.stdout
    assert "1.0 GB/s with 4 threads" in bench.stdout


def test_errors_are_one_line(ssh_server: SshServer, environment: dict[str, str], tmp_path: Path) -> None:
    for argv, said in (
        (("run", "--board", "rpi5", "-p", "x"), "where is rpi5?"),
        (("run", "--board", "nonesuch", "-p", "x"), "there is no board 'nonesuch'"),
        (("run", "--board", "rpi5", "--host", "kitchen", "--model", "absent", "-p", "x"), "no model called absent"),
        (("deploy", str(tmp_path / "absent"), "--board", "rpi5", "--host", "kitchen"), "absent"),
        (("deploy", str(make_bundle(tmp_path / "b").path), "--board", "rpi5", "--host=-oProxyCommand=x"), "address"),
    ):
        result = edgellm(environment, *argv)
        assert result.returncode == 1, argv
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("edgellm: ")
        assert said in result.stderr


def test_a_board_that_talks_nonsense_is_not_believed(
    ssh_server: SshServer, environment: dict[str, str], tmp_path: Path
) -> None:
    deploy(make_bundle(tmp_path / "b"), connected := SshRemote(ssh_server.address))
    connected.close()
    talk = edgellm(environment, "chat", "--board", "rpi5", "--host", "kitchen", "--model", "tiny", stdin="rubbish\n")
    assert talk.returncode == 1
    assert talk.stderr == "edgellm: rpi5 (kitchen): edgellm-rt said something unexpected: [31mthis is not JSON\n"


def test_ctrl_c_ends_the_answer_and_not_the_conversation(
    ssh_server: SshServer, environment: dict[str, str], tmp_path: Path
) -> None:
    with SshRemote(ssh_server.address) as remote:
        deploy(make_bundle(tmp_path / "b"), remote)
    command = [sys.executable, "-m", "edgellm", "chat", "--board", "rpi5", "--host", "kitchen", "--model", "tiny"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as chat:
        assert chat.stdin
        assert chat.stdout
        chat.stdin.write(b"long\n")
        chat.stdin.flush()
        assert chat.stdout.read(5) == b"tick "
        chat.send_signal(signal.SIGINT)
        chat.stdin.write(b"still there?\n")
        chat.stdin.close()
        assert b"You said: still there?" in chat.stdout.read()
        assert chat.wait() == 0


def test_a_deployment_over_a_broken_link_goes_on_later(ssh_server: SshServer, tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old", model={"name": "broken-link"})
    big = make_bundle(
        tmp_path / "big", {"weights/layer.1.safetensors": bytes(20_000_000)}, model={"name": "broken-link"}
    )
    with SshRemote(ssh_server.address) as remote:
        deploy(old, remote)
    link = Link(ssh_server.port, limit_bytes=8_000_000, then=ssh_server.kill_sessions)
    with SshRemote(through(link, ssh_server, tmp_path)) as remote, pytest.raises(LinkError, match="broke"):
        deploy(big, remote)
    with SshRemote(ssh_server.address) as remote:
        current = find_model(remote, "broken-link")
        assert remote.run(current.argv("verify")).status == 0
        done = deploy(big, remote)
        assert 0 < done.sent_bytes < 16_000_000
        assert remote.run(current.argv("verify")).status == 0
        there = remote.run(["ls", f"{ssh_server.home}/.edgellm/models/broken-link"]).text.split()
        assert set(there) == {big.sha256[:16], old.sha256[:16], "current", "previous"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "small").mkdir()
    with SmallDisk(tmp_path / "small") as remote:
        yield remote


def test_a_full_disk(small_disk: SmallDisk, tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old")
    big = make_bundle(tmp_path / "big", {"weights/layer.1.safetensors": bytes(6_000_000)})
    deploy(old, small_disk)
    with pytest.raises(UnsuitableError, match=r"no space on small: 7\.\d MB are needed in .*, 4\.\d MB are free"):
        deploy(big, small_disk)
    # Somebody else takes the space while we send: the question beforehand could not know.
    before = probe(small_disk)
    with pytest.raises(DiskFullError, match=r"no space on small: 6\.\d MB are needed in .* free now"):
        deploy(big, small_disk, facts=replace(before, disk_free_bytes=10**9))
    current = find_model(small_disk, "tiny")
    assert small_disk.run(current.argv("verify")).status == 0
    assert before.disk_free_bytes - probe(small_disk).disk_free_bytes < 100_000  # nothing was left behind


def test_a_server_without_sftp_is_enough(ssh_server: SshServer, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", model={"name": "no-sftp"})
    with SshRemote(ssh_server.address) as remote:
        with pytest.raises(paramiko.SSHException):
            paramiko.SFTPClient.from_transport(remote._transport)
        done = deploy(bundle, remote)
        assert done.sent_bytes > 0
        assert remote.run(find_model(remote, "no-sftp").argv("verify")).status == 0
        remote.get(f"{done.path}/manifest.json", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (bundle.path / "manifest.json").read_bytes()


def test_two_at_once_do_no_harm(ssh_server: SshServer, tmp_path: Path) -> None:
    """Two people deploy the same bundle to the same board: one may fail, the board ends up with a whole model."""
    bundle = make_bundle(tmp_path / "b", {"weights/layer.1.safetensors": bytes(3_000_000)}, model={"name": "twice"})
    failures: list[BaseException] = []

    def go() -> None:
        with SshRemote(ssh_server.address) as remote:
            try:
                deploy(bundle, remote, reporter=Reporter())
            except EdgeError as error:
                failures.append(error)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with SshRemote(ssh_server.address) as remote:
        deploy(bundle, remote)
        assert remote.run(find_model(remote, "twice").argv("verify")).status == 0


def test_status_rollback_logs_gc_and_undeploy(
    ssh_server: SshServer, environment: dict[str, str], tmp_path: Path
) -> None:
    where = ("--board", "rpi5", "--host", "kitchen")
    old = make_bundle(tmp_path / "old", model={"name": "versions"})
    new = make_bundle(tmp_path / "new", {"plan.json": b'{"new": 1}'}, model={"name": "versions"})

    def command(name: str, *rest: str) -> subprocess.CompletedProcess[str]:
        return edgellm(environment, name, *where, *rest)

    for bundle in (old, new):
        assert command("deploy", str(bundle.path)).returncode == 0
    status = json.loads(command("status", "--json").stdout)["models"]["versions"]
    assert (status["current"], status["previous"]) == (new.sha256[:16], old.sha256[:16])
    shown = command("status").stdout
    assert re.search(rf"versions +{new.sha256[:16]} +current", shown)
    assert re.search(rf"versions +{old.sha256[:16]} +previous", shown)

    model = ("--model", "versions")
    back = json.loads(command("rollback", *model, "--json").stdout)
    assert (back["promoted"], back["previous"]) == (old.sha256[:16], new.sha256[:16])
    forward = command("rollback", *model)
    assert f"in use   versions {new.sha256[:16]}" in forward.stdout, forward.stderr
    assert json.loads(command("status", "--json").stdout)["models"]["versions"]["current"] == new.sha256[:16]

    logs = [
        entry for entry in json.loads(command("logs", "--json", "-n", "999").stdout) if entry["model"] == "versions"
    ]
    assert [entry["what"] for entry in logs] == ["promote", "promote", "rollback", "rollback"]
    assert "rollback" in command("logs").stdout

    (ssh_server.home / ".edgellm/store" / f"{'0' * 64}.part").write_bytes(bytes(5000))
    assert json.loads(command("gc", "--json").stdout)["removed"] == 1
    gone = command("undeploy", *model)
    assert "versions is removed from rpi5" in gone.stdout, gone.stderr
    assert "versions" not in json.loads(command("status", "--json").stdout)["models"]
    again = command("undeploy", *model)
    assert again.returncode == 1
    assert "there is no model called versions here" in again.stderr


def test_a_damaged_previous_version_is_not_gone_back_to(ssh_server: SshServer, tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old", model={"name": "damaged"})
    new = make_bundle(tmp_path / "new", {"plan.json": b'{"new": 2}'}, model={"name": "damaged"})
    with SshRemote(ssh_server.address) as remote:
        for bundle in (old, new):
            deploy(bundle, remote)
        slots = ssh_server.home / ".edgellm/models/damaged"
        plan = slots / old.sha256[:16] / "plan.json"
        plan.chmod(0o644)
        plan.write_bytes(b"{{")
        with pytest.raises(RuntimeFailedError, match=r"plan\.json: does not match"):
            ask_once(remote, str(ssh_server.home), "rollback", "damaged")
        assert os.readlink(slots / "current") == new.sha256[:16]


def test_the_lock_names_who_holds_it_and_a_silent_holder_gives_way(ssh_server: SshServer, tmp_path: Path) -> None:
    with SshRemote(ssh_server.address) as remote:
        deploy(make_bundle(tmp_path / "b", model={"name": "locked"}), remote)
    home = str(ssh_server.home)
    with SshRemote(ssh_server.address) as first, SshRemote(ssh_server.address) as second:
        holder = BoardSession(first, home)
        stop = threading.Event()

        def talk() -> None:
            while not stop.wait(1):
                holder.survey()

        talker = threading.Thread(target=talk)
        talker.start()
        with pytest.raises(RuntimeFailedError, match=r"another deployment is under way here: .*@.*, process \d+"):
            ask_once(second, home, "gc")
        stop.set()
        talker.join()
        assert "freed_bytes" in ask_once(second, home, "gc")  # now it says nothing, and somebody waits
        with pytest.raises(EdgeError, match="the host said nothing"):
            holder.survey()
