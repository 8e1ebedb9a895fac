"""Remote over a real SSH server: what arrives, what is refused, and that every fault ends in a clear error."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.address import SshAddress
from edgellm.errors import CommandError, DiskFullError, HostKeyError, LinkError, LoginError, UnreachableError
from edgellm.ssh import SshRemote
from tests.emulated.conftest import Link, SshServer, free_port, make_key


@pytest.fixture
def remote(ssh_server: SshServer) -> Iterator[SshRemote]:
    with SshRemote(ssh_server.address, "testboard") as connected:
        yield connected


def through(link: Link, ssh_server: SshServer, tmp_path: Path) -> SshAddress:
    """The server's address by way of a proxy, with its key known under that port."""
    known = tmp_path / "known_hosts"
    known.write_text((ssh_server.directory / "known_hosts").read_text().replace(str(ssh_server.port), str(link.port)))
    return replace(ssh_server.address, port=link.port, known_hosts_path=known)


AWKWARD = "a \"b\" 'c' $HOME `id` ;|& *\\ ä\n-n"


def test_arguments_arrive_as_they_are(remote: SshRemote) -> None:
    assert remote.run(["printf", "%s", AWKWARD]).text == AWKWARD
    assert remote.script('printf %s "$2"', "x", AWKWARD).text == AWKWARD


def test_files_travel_both_ways_under_any_name(remote: SshRemote, ssh_server: SshServer, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(bytes(range(256)) * 5000)
    name = f"{ssh_server.home}/{AWKWARD}"
    counted: list[int] = []
    remote.put(source, name, progress=counted.append)
    remote.get(name, back)
    assert back.read_bytes() == source.read_bytes()
    assert sum(counted) == 1_280_000
    assert max(counted) <= 128 * 1024


def test_an_upload_goes_on_from_an_offset(remote: SshRemote, ssh_server: SshServer, tmp_path: Path) -> None:
    source, there = tmp_path / "source", ssh_server.home / "offset"
    source.write_bytes(b"0123456789" * 1000)
    there.write_bytes(source.read_bytes()[:3333])
    remote.put(source, str(there), offset=3333)
    assert there.read_bytes() == source.read_bytes()


def test_an_upload_never_writes_through_a_hard_link(remote: SshRemote, ssh_server: SshServer, tmp_path: Path) -> None:
    source, old, new = tmp_path / "source", ssh_server.home / "old", ssh_server.home / "new"
    source.write_bytes(b"new")
    old.write_bytes(b"old")
    new.hardlink_to(old)
    remote.put(source, str(new))
    assert (old.read_bytes(), new.read_bytes()) == (b"old", b"new")


def test_status_and_both_outputs_come_back(remote: SshRemote) -> None:
    result = remote.run(["sh", "-c", "yes | head -c 3000000 >&2; echo out; exit 7"])
    assert (result.status, result.text) == (7, "out\n")
    assert result.stderr.endswith("y\n")
    with pytest.raises(CommandError, match="status 7: hopeless"):
        remote.script("echo hopeless >&2; exit 7")


def test_more_output_than_allowed_is_refused(remote: SshRemote) -> None:
    with pytest.raises(CommandError, match="more than 1000 bytes"):
        remote.run(["yes"], limit_bytes=1000)


def test_missing_folder_is_named(remote: SshRemote, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(CommandError, match="/nowhere/at/all"):
        remote.put(tmp_path / "source", "/nowhere/at/all")


def test_tunnel_reaches_a_port_on_the_board(remote: SshRemote, ssh_server: SshServer) -> None:
    tunnel = remote.tunnel(ssh_server.port)
    assert tunnel.recv(4) == b"SSH-"
    tunnel.close()


# ---- host keys and logins -----------------------------------------------------------------------------------------


def test_a_changed_host_key_is_refused(ssh_server: SshServer, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{ssh_server.port} {(tmp_path / 'other.pub').read_text()}")
    address = replace(ssh_server.address, known_hosts_path=known)
    with pytest.raises(HostKeyError, match=r"CHANGED: ssh-ed25519 SHA256:.* ssh-keygen -f .* -R") as caught:
        SshRemote(address, ask=lambda question: "yes")  # a person saying yes makes no difference
    remedy = str(caught.value).split("forget the old key: ")[1]
    subprocess.run(["sh", "-c", remedy], check=True, capture_output=True)
    SshRemote(address, ask=lambda question: "yes").close()  # and the remedy is one


def test_an_unknown_host_key_is_refused_where_nobody_can_be_asked(ssh_server: SshServer, tmp_path: Path) -> None:
    address = replace(ssh_server.address, known_hosts_path=tmp_path / "known_hosts")
    with pytest.raises(HostKeyError, match=r"not known: ssh-ed25519 SHA256:.* `ssh -p \d+ "):
        SshRemote(address)
    assert not (tmp_path / "known_hosts").exists()


def test_an_unknown_host_key_is_recorded_if_the_user_agrees(ssh_server: SshServer, tmp_path: Path) -> None:
    known = tmp_path / "ssh" / "known_hosts"
    known.parent.mkdir()
    known.write_text("elsewhere ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGh5n2c9kq0a6Gf6FTRLh0V8kZ0vJvVbG4lXyB3nCkQ0")
    address = replace(ssh_server.address, known_hosts_path=known)
    questions: list[str] = []

    def answer(text: str) -> str:
        questions.append(text)
        return "no\n" if len(questions) == 1 else "yes\n"

    with pytest.raises(HostKeyError, match="not trusted"):
        SshRemote(address, ask=answer)
    SshRemote(address, ask=answer).close()
    SshRemote(address).close()  # now it is known
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", ssh_server.directory / "host_key.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert fingerprint in questions[0]
    assert known.read_text().startswith("elsewhere ssh-ed25519 ")


def test_hashed_names_several_keys_and_rubbish_in_known_hosts(ssh_server: SshServer, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    make_key(tmp_path / "older")
    name, good = (ssh_server.directory / "known_hosts").read_text().split(maxsplit=1)
    older = (tmp_path / "older.pub").read_text()
    known.write_text(f"{name} {older}{name} {good}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    hashed = known.read_text()
    assert name not in hashed
    known.write_text(f"rubbish\n{name} ssh-ed25519 !!!\n{name} ssh-unheard-of AAAA\n{hashed}")
    SshRemote(replace(ssh_server.address, known_hosts_path=known)).close()


def test_a_revoked_host_key_is_refused(ssh_server: SshServer, tmp_path: Path) -> None:
    good = (ssh_server.directory / "known_hosts").read_text()
    known = tmp_path / "known_hosts"
    known.write_text(good + "@revoked * " + good.split(maxsplit=1)[1])
    with pytest.raises(HostKeyError, match="revoked"):
        SshRemote(replace(ssh_server.address, known_hosts_path=known), ask=lambda question: "yes")


def test_a_key_that_is_not_authorised_is_refused(ssh_server: SshServer, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    with pytest.raises(LoginError, match=r"was not let in .*stranger.*ssh-copy-id"):
        SshRemote(replace(ssh_server.address, key_path=tmp_path / "stranger"))


def test_nothing_listening_is_said(ssh_server: SshServer) -> None:
    with pytest.raises(UnreachableError, match="refuses connections"):
        SshRemote(replace(ssh_server.address, port=free_port()))
    with pytest.raises(UnreachableError, match="is not known; check its spelling"):
        SshRemote(SshAddress("no-such-board.invalid"))


def test_something_else_listening_is_said(ssh_server: SshServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UnreachableError, match="does not answer as an SSH server"):
            SshRemote(replace(ssh_server.address, port=server.getsockname()[1]))
        thread.join()


# ---- ~/.ssh/config ------------------------------------------------------------------------------------------------


@pytest.fixture
def config(ssh_server: SshServer, tmp_path: Path) -> Path:
    """A configuration in which `kitchen` is the server, `far` is it by way of itself, and `piped` through a program."""
    address = ssh_server.address
    included = tmp_path / "more"
    included.write_text(f"Host kitchen far piped\n  HostName 127.0.0.1\n  Port {address.port}\n  User {address.user}\n")
    (tmp_path / "config").write_text(f"""\
# comment
Include {included}
Host far
  ProxyJump kitchen
Host piped
  ProxyCommand {shutil.which("python3")} -c '{PIPE}' %h %p
Host *
  IdentityFile {address.key_path}
  IdentitiesOnly yes
  UserKnownHostsFile {address.known_hosts_path}
""")
    return tmp_path / "config"


PIPE = (
    "import os,select,socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n"
    "while True:\n r=select.select([0,s],[],[])[0]\n"
    " if 0 in r:\n  d=os.read(0,65536)\n  if not d: break\n  s.sendall(d)\n"
    " if s in r:\n  d=s.recv(65536)\n  if not d: break\n  os.write(1,d)\n"
).replace("\n", '"+chr(10)+"')
PIPE = f'exec("{PIPE}")'


@pytest.mark.parametrize("host", ["kitchen", "far", "piped"])
def test_ssh_config_is_honoured(config: Path, host: str, tmp_path: Path) -> None:
    with SshRemote(SshAddress(host), config_path=config) as remote:
        assert remote.run(["echo", "there"]).text == "there\n"


def test_agent_keys_are_used(ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ssh_server.address
    (tmp_path / "config").write_text(f"Host *\n  UserKnownHostsFile {address.known_hosts_path}\n")
    monkeypatch.setenv("HOME", str(tmp_path))  # no key files here
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "agent").exists():
            assert agent.poll() is None
        plain = SshAddress("127.0.0.1", address.port, address.user)
        with pytest.raises(LoginError, match="no key was found"):
            SshRemote(plain, config_path=tmp_path / "config")
        subprocess.run(["ssh-add", "-q", str(address.key_path)], check=True)
        SshRemote(plain, config_path=tmp_path / "config").close()
    finally:
        agent.terminate()
        agent.wait()


def test_a_protected_key_asks_for_its_passphrase(ssh_server: SshServer, tmp_path: Path) -> None:
    protected = tmp_path / "protected"
    shutil.copy(ssh_server.directory / "login", protected)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "open sesame", "-f", str(protected)], check=True)
    address = replace(ssh_server.address, key_path=protected)
    asked: list[str] = []

    def passphrase(question: str) -> str:
        asked.append(question)
        return "open sesame"

    SshRemote(address, ask_hidden=passphrase).close()
    assert asked == [f"Passphrase for {protected}: "]
    with pytest.raises(LoginError, match="cannot be used"):
        SshRemote(address, ask_hidden=lambda question: "wrong")


# ---- faults -------------------------------------------------------------------------------------------------------


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(bytes(24_000_000))  # more than every buffer on the way
    return path


def test_a_stalled_link_is_given_up(ssh_server: SshServer, tmp_path: Path, big: Path) -> None:
    link = Link(ssh_server.port, limit_bytes=1_000_000)
    with SshRemote(through(link, ssh_server, tmp_path)) as remote:
        process = remote.start(["sh", "-c", "cat >/dev/null"], silence_s=1.0)
        with pytest.raises(LinkError, match="stalled while sending"):
            process.write(big.read_bytes())
    link.close()


def test_a_link_that_breaks_is_the_same_error_at_every_call(remote: SshRemote) -> None:
    """paramiko has a moment when it sends into a closed connection, which is an EOFError to it."""
    process = remote.start(["cat"])
    remote._transport.packetizer.close()
    with pytest.raises(LinkError, match="broke while sending"):
        process.write(b"x")
    process.close()
    process.close()
    assert process.errors() == ""


def test_a_silent_command_is_given_up(remote: SshRemote) -> None:
    with remote.start(["sleep", "60"], silence_s=0.3) as process, pytest.raises(LinkError, match="no answer for 0 s"):
        process.read(1)


def test_a_server_killed_in_the_middle_of_an_upload(ssh_server: SshServer, tmp_path: Path, big: Path) -> None:
    link = Link(ssh_server.port, limit_bytes=5_000_000, then=ssh_server.kill_sessions)
    with SshRemote(through(link, ssh_server, tmp_path)) as remote, pytest.raises(LinkError, match="connection broke"):
        remote.put(big, str(ssh_server.home / "killed"))


def test_a_full_disk_is_called_that(remote: SshRemote, tmp_path: Path, big: Path) -> None:
    with pytest.raises(DiskFullError, match="no space left while writing /dev/full"):
        remote.put(big, "/dev/full", offset=1)  # with an offset the file is not replaced
