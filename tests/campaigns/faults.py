"""The fault campaign: python -m tests.campaigns.faults --n 200 --seed 1 (`make faults`, and a sample of it in CI).

A deployment is hurt at N random places, and the board is then asked for the truth. Whatever happened, it must answer
from the complete old or the complete new model: its current version hashes right and gives its golden tokens. The
fault must have ended in a clear error, in time. The next deployment must succeed, sending again at most 1 MB of what
the board has, and after `gc` nothing may lie there that no version refers to.

    link   N        the connection is cut after a random byte from the host
    stall  N / 40   it goes silent instead, and stays open on the board's side
    kill   N / 10   everything the server runs is killed after a random byte
    disk   N / 10   the disk fills up: so much room is left as a random part of the model
    key    1        the board shows another host key
    clock  2        the board's clock says 1970, and 2100 (full-system board)
    adb    N / 4    an Android device is unplugged after a random byte from the host
    adbd   N / 20   adb's server or the device's adbd is killed after a random byte
    power  N / 4    the power fails at a random moment of upload, verification and switch (full-system board)

Models are the voice assistant's, compiled for each board, and a copy with other weights. A line per fault is
printed, and the figures at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from crosscompile.runtime import build_runtime
from edgellm import board_session, bundle, virtual
from edgellm.board_session import ask_once, read_survey
from edgellm.boards import find_board
from edgellm.bundle import Bundle
from edgellm.deployment import Deployment, Reporter, deploy
from edgellm.errors import EdgeError, HostKeyError
from edgellm.probe import Facts, probe
from edgellm.remote import Remote
from edgellm.runtime_program import PROGRAM
from edgellm.ssh import SshRemote
from tests.campaigns import adb_faults
from tests.campaigns.full_board import FullBoard, missing
from tests.emulated.conftest import SshServer, make_key, running_server
from tests.emulated.proxy import Proxy
from tests.emulated.small_disk import SmallDisk

MODEL = Path(__file__).resolve().parents[2] / "examples/voice_assistant/model"
LIMIT_S = 300.0
"""Within this every fault must have ended in an error. Generous: the machine may do other things."""


class WrongError(AssertionError):
    """The board is in a state it must never be in, or a fault went unnoticed."""


@dataclass
class Figures:
    """What happened, for the last lines."""

    outcomes: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    most_resent_bytes: int = 0
    problems: list[str] = field(default_factory=list)


# ---- two models --------------------------------------------------------------------------------------------------


def pair(board_id: str, made: Path | None, folder: Path) -> tuple[Bundle, Bundle]:
    """The model for a board, and the same with other weights and its own golden tokens.

    made: a bundle for that board that somebody compiled before; its program is made anew all the same."""
    board = find_board(board_id)
    if made is None:
        from edgellm.compile import build
        from edgellm.precision import Options

        made = build(str(MODEL), board, Options(scheme="w8a8")).bundle.path
    emulator: list[str] = []
    if board_id != "local":
        root, program = virtual.fetch(board)
        emulator = [str(program), "-L", str(root)]
    both = []
    for name in ("old", "new"):
        target = folder / name
        shutil.copytree(made, target)
        shutil.copy(build_runtime(board.target()), target / PROGRAM)
        manifest = dict(bundle.read(made).manifest)
        del manifest["files"], manifest["format"]
        if name == "new":
            for shard in (target / "weights").glob("*.safetensors"):
                change_weights(shard)
            bundle.seal(target, manifest)
            wanted = [(golden["prompt"], len(golden["tokens"])) for golden in manifest["golden"]]
            manifest["golden"] = [answer(target, emulator, prompt, n) for prompt, n in wanted]
        both.append(bundle.seal(target, manifest))
    return both[0], both[1]


def change_weights(shard: Path) -> None:
    """Flips the lowest bit of the first elements of a shard's first tensor."""
    data = bytearray(shard.read_bytes())
    (n_header,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + n_header])
    entries = [entry for name, entry in header.items() if not name.startswith("__")]
    first = min(entries, key=lambda entry: entry["data_offsets"][0])
    stride = {"U8": 1, "F16": 2, "F32": 4}[first["dtype"]]
    begin, end = first["data_offsets"]
    for at in range(begin, min(end, begin + 4096), stride):
        data[8 + n_header + at] ^= 1
    shard.write_bytes(data)


def answer(folder: Path, emulator: list[str], prompt: list[int], n: int) -> dict[str, list[int]]:
    command = [*emulator, str(folder / "edgellm-rt"), "run", str(folder), "--json"]
    command += ["--tokens", ",".join(map(str, prompt)), "-n", str(n), "--temperature", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"prompt": prompt, "tokens": json.loads(done.stdout.splitlines()[-1])["ids"]}


# ---- what must be so after every fault ---------------------------------------------------------------------------


def version_in_use(remote: Remote, home: str, old: Bundle, new: Bundle) -> str:
    """ "old" or "new": the model that answers, whole and with its own golden tokens. WrongError if it is neither."""
    current = f"{home}/.edgellm/models/{old.name}/current"
    digest = remote.run(["cat", f"{current}/manifest.sha256"]).text[:64]
    name = {old.sha256: "old", new.sha256: "new"}.get(digest)
    if name is None:
        raise WrongError(f"the model in use is {digest or 'none'}, neither the old nor the new one")
    for command in ("verify", "golden"):
        result = remote.run([f"{current}/edgellm-rt", command, current], silence_s=LIMIT_S)
        if result.status:
            raise WrongError(f"the {name} model is in use and broken: {result.stderr.strip()}")
    return name


def nothing_more(remote: Remote, home: str, *bundles: Bundle) -> None:
    """After gc there is nothing but what these versions refer to. WrongError with what there is."""
    ask_once(remote, home, "gc")
    wanted = {file.sha256 for each in bundles for file in each.files} | {each.sha256 for each in bundles}
    script = 'cd "$1/.edgellm"; ls -A store; echo --; ls -A models; echo --; ls -A models/*; echo --; ls -A .'
    store, models, slots, root = (part.split() for part in remote.script(script, home).text.split("--\n"))
    links = {"current", "previous"} if len(bundles) > 1 else {"current"}
    expected = (wanted, {bundles[0].name}, {each.sha256[:16] for each in bundles} | links)
    for found, right in zip((store, models, slots), expected, strict=True):
        if set(found) != right:
            raise WrongError(
                f"after gc there is {sorted(set(found) - right)} too much, {sorted(right - set(found))} too few"
            )
    if extra := set(root) - {"edgellm-rt", "lock", "lock.wanted", "log", "log.old", "models", "store"}:
        raise WrongError(f"after gc there is {sorted(extra)} too much")


def missing_bytes(remote: Remote, home: str, wanted: Bundle) -> int:
    """What a deployment has to send at least: what the store has neither whole nor as the beginning of a file."""
    try:
        survey = read_survey(ask_once(remote, home, "survey"), remote.name)
    except EdgeError:
        return sum({file.sha256: file.n_bytes for file in wanted.files}.values())
    sizes = {file.sha256: file.n_bytes for file in wanted.files}
    sizes[wanted.sha256] = (wanted.path / bundle.MANIFEST).stat().st_size
    return sum(n - survey.parts.get(sha256, 0) for sha256, n in sizes.items() if survey.store.get(sha256) != n)


class Campaign:
    """The models, the random numbers and the figures of one run."""

    def __init__(self, seed: int, quiet: bool) -> None:
        self.random = random.Random(seed)
        self.figures: dict[str, Figures] = {}
        self._quiet = quiet

    def hurt(self, kind: str, where: str, go: Callable[[], Deployment]) -> None:
        """Runs a deployment that meets a fault; only our own errors are clear ones."""
        figures = self.figures.setdefault(kind, Figures())
        began = time.monotonic()
        try:
            go()
            outcome = "no error"
        except EdgeError as error:
            outcome = type(error).__name__
            if "\n" in str(error):
                raise WrongError(f"the error is no single line: {error}") from error
        took_s = time.monotonic() - began
        figures.longest_s = max(figures.longest_s, took_s)
        figures.outcomes[outcome] += 1
        self._last = f"{kind:<6}{where:<34}{outcome:<18}{took_s:6.1f} s"
        if took_s > LIMIT_S:
            raise WrongError(f"it took {took_s:.0f} s until the fault ended in {outcome}")

    def heal(self, kind: str, remote: Remote, home: str, old: Bundle, new: Bundle) -> None:
        """Asks the board for the truth, deploys again, and collects."""
        figures = self.figures[kind]
        name = version_in_use(remote, home, old, new)
        figures.outcomes[f"{name} in use"] += 1
        needed = missing_bytes(remote, home, new)
        done = deploy(new, remote)
        resent = done.sent_bytes - needed
        figures.most_resent_bytes = max(figures.most_resent_bytes, resent)
        if version_in_use(remote, home, old, new) != "new":
            raise WrongError("the next deployment succeeded, and the old model is in use")
        if resent > 1 << 20:
            raise WrongError(f"the next deployment sent {resent} bytes again")
        nothing_more(remote, home, new, old)
        if not self._quiet:
            print(f"{self._last}  {name} in use, then {done.sent_bytes} bytes ({resent} again)", flush=True)

    @contextmanager
    def noted(self, kind: str, what: str) -> Iterator[None]:
        """A WrongError inside is a problem of the campaign, which goes on."""
        try:
            yield
        except (WrongError, EdgeError) as error:
            self.figures.setdefault(kind, Figures()).problems.append(f"{what}: {error}")
            print(f"WRONG {kind} {what}: {error}", flush=True)

    def report(self) -> int:
        for kind, figures in self.figures.items():
            counts = ", ".join(f"{name} {n}" for name, n in sorted(figures.outcomes.items()))
            print(
                f"{kind}: {counts}; longest {figures.longest_s:.1f} s; at most {figures.most_resent_bytes} bytes sent "
                f"again; {len(figures.problems)} problems"
            )
        return 1 if any(figures.problems for figures in self.figures.values()) else 0


# ---- over a real SSH server on this machine ----------------------------------------------------------------------


def through(port: int, server: SshServer, folder: Path) -> SshRemote:
    """A connection by way of a proxy, with the server's key known under that port."""
    known = folder / f"known_hosts.{port}"
    known.write_text((server.directory / "known_hosts").read_text().replace(str(server.port), str(port)))
    return SshRemote(replace(server.address, port=port, known_hosts_path=known))


def over_links(
    campaign: Campaign, n: dict[str, int], old: Bundle, new: Bundle, server: SshServer, folder: Path
) -> None:
    home, template = server.home, folder / "template"
    with SshRemote(server.address) as remote:
        deploy(old, remote)
    subprocess.run(["cp", "-a", str(home), str(template)], check=True)

    def reset() -> None:
        shutil.rmtree(home / ".edgellm")
        subprocess.run(["cp", "-a", str(template / ".edgellm"), str(home)], check=True)

    proxy = Proxy(server.port)
    with through(proxy.port, server, folder) as remote:
        deploy(new, remote)
    proxy.close()
    n_bytes = proxy.n_bytes
    kinds = [kind for kind in ("link", "stall", "kill") for _ in range(n[kind])]
    for kind in kinds:
        reset()
        at = campaign.random.randrange(n_bytes)
        with campaign.noted(kind, f"byte {at}"):
            fault = {"link": "cut", "stall": "stall", "kill": server.kill_sessions}[kind]
            proxy = Proxy(server.port, at, fault)

            def go(proxy: Proxy = proxy) -> Deployment:
                with through(proxy.port, server, folder) as remote:
                    return deploy(new, remote)

            campaign.hurt(kind, f"byte {at} of {n_bytes}", go)
            try:
                with SshRemote(server.address) as remote:
                    campaign.heal(kind, remote, str(home), old, new)
            finally:
                proxy.close()
    if n["key"]:
        reset()
        make_key(folder / "other")
        known = folder / "known_hosts.other"
        known.write_text(f"[127.0.0.1]:{server.port} {(folder / 'other.pub').read_text()}")

        def wrong_key() -> Deployment:
            with SshRemote(replace(server.address, known_hosts_path=known)) as remote:
                return deploy(new, remote)

        with campaign.noted("key", "another key"):
            campaign.hurt("key", "another key", wrong_key)
            if campaign.figures["key"].outcomes[HostKeyError.__name__] != 1:
                raise WrongError("a board with another key was deployed to")
            with SshRemote(server.address) as remote:
                campaign.heal("key", remote, str(home), old, new)


# ---- a disk that fills up ----------------------------------------------------------------------------------------


def full_disks(campaign: Campaign, n: int, old: Bundle, new: Bundle, folder: Path) -> None:
    for number in range(n):
        home = folder / f"disk{number}"
        home.mkdir()
        with campaign.noted("disk", str(number)), SmallDisk(home, 64 << 20) as disk:
            deploy(old, disk)
            room = campaign.random.randrange(missing_size(old, new))
            disk.leave(room)
            known = replace(probe(disk), disk_free_bytes=1 << 40)  # somebody else takes the space while we send

            def go(disk: SmallDisk = disk, known: Facts = known) -> Deployment:
                return deploy(new, disk, facts=known)

            campaign.hurt("disk", f"{room} bytes left", go)
            if version_in_use(disk, str(home), old, new) != "old":
                raise WrongError("it says that the disk was full, and uses the new model")
            disk.leave(40 << 20)
            campaign.heal("disk", disk, str(home), old, new)


# ---- a board that can lose its power -----------------------------------------------------------------------------


class CutPower(Reporter):
    """Cuts the power after so many bytes, or so many seconds into the stage after them."""

    def __init__(self, board: FullBoard, after_bytes: int | None, stage: str, after_s: float) -> None:
        self._board, self._left, self._stage, self._after_s = board, after_bytes, stage, after_s
        self._timer: threading.Timer | None = None

    def transferred(self, n_bytes: int) -> None:
        if self._left is not None:
            self._left -= n_bytes
            if self._left < 0:
                self._left = None
                self._board.kill()

    def stage(self, text: str) -> None:
        if self._left is None and self._timer is None and text.startswith(self._stage):
            self._timer = threading.Timer(self._after_s, self._board.kill)
            self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()


class Clock(Reporter):
    """When the board began to verify."""

    began_s = 0.0

    def stage(self, text: str) -> None:
        if text.startswith("verifying") and not self.began_s:
            self.began_s = time.monotonic()


def power_cuts(campaign: Campaign, n: dict[str, int], old: Bundle, new: Bundle, folder: Path) -> None:
    """Deploys old and new in turn, so that each cut hits a deployment that has something to do."""
    home = f"/home/{virtual.USER}"
    wipe = 'rm -rf "$HOME/.edgellm"'
    with FullBoard(folder / "full-board") as board:
        for year in ("1970", "2100")[: n["clock"]]:
            with campaign.noted("clock", year):
                board.start(clock=f"{year}-01-01T00:00:00")
                with SshRemote(board.address) as remote:
                    remote.script(wipe)
                    deploy(old, remote)
                    campaign.hurt("clock", year, lambda remote=remote: deploy(new, remote))
                    campaign.heal("clock", remote, home, old, new)
            board.kill()
        if not n["power"]:
            return
        board.start(writes_per_s=200)
        clock = Clock()
        with SshRemote(board.address) as remote:
            remote.script(wipe)
            deploy(old, remote)
            deploy(new, remote, reporter=clock)
            promote_s = time.monotonic() - clock.began_s
            deploy(old, remote)
        for number in range(n["power"]):
            moment = ("upload", "promotion", "promotion")[number % 3]
            with campaign.noted("power", f"{moment} {number}"):
                with SshRemote(board.address) as remote:
                    ask_once(remote, home, "undeploy", old.name)  # so that everything new has to be sent
                    deploy(old, remote)
                if moment == "upload":
                    at = campaign.random.randrange(missing_size(old, new))
                    where, cut = f"byte {at}", CutPower(board, at, "never", 0)
                else:
                    after_s = campaign.random.uniform(0, 1.1 * promote_s)
                    where, cut = f"{after_s:.2f} s of {promote_s:.2f} s", CutPower(board, None, "verifying", after_s)

                def go(cut: CutPower = cut) -> Deployment:
                    with SshRemote(board.address) as remote:
                        return deploy(new, remote, reporter=cut)

                try:
                    campaign.hurt("power", f"{moment}, {where}", go)
                finally:
                    cut.end()
                    board.kill()
                    board.start(writes_per_s=200)
                with SshRemote(board.address) as remote:
                    campaign.heal("power", remote, home, old, new)


def missing_size(old: Bundle, new: Bundle) -> int:
    """Bytes of the new model that the old one does not have."""
    there = {file.sha256 for file in old.files}
    return sum({file.sha256: file.n_bytes for file in new.files if file.sha256 not in there}.values())


# ---- the command -------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="how many links are cut; the others in proportion")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="link,stall,kill,disk,key,adb,adbd,clock,power", metavar="KIND,…")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="the model, compiled for this machine before")
    parser.add_argument("--arm-bundle", type=Path, metavar="DIR", help="the model, compiled for virtual-rpi5 before")
    parser.add_argument("--android-bundle", type=Path, metavar="DIR", help="the same, compiled for virtual-android")
    parser.add_argument("--quiet", action="store_true", help="print problems and figures only")
    args = parser.parse_args()
    wanted = set(args.only.split(","))
    counts = {"link": args.n, "stall": -(-args.n // 40), "kill": -(-args.n // 10), "disk": -(-args.n // 10)}
    counts |= {"adb": -(-args.n // 4), "adbd": -(-args.n // 20)}
    counts |= {"key": 1, "clock": 2, "power": -(-args.n // 4)}
    n = {kind: count if kind in wanted else 0 for kind, count in counts.items()}
    campaign = Campaign(args.seed, args.quiet)
    board_session.SILENCE_S = 20.0  # a stall is to end sooner than a person's patience
    in_memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="edgellm-faults-", dir=in_memory) as name:
        folder = Path(name)
        if n["link"] or n["stall"] or n["kill"] or n["key"] or n["disk"]:
            old, new = pair("local", args.bundle, folder / "local")
            if n["link"] or n["stall"] or n["kill"] or n["key"]:
                (folder / "server").mkdir()
                with running_server(folder / "server") as server:
                    over_links(campaign, n, old, new, server, folder)
            full_disks(campaign, n["disk"], old, new, folder)
        if n["adb"] or n["adbd"]:
            if reason := virtual.availability(find_board(adb_faults.BOARD)):
                print(f"no Android device can be emulated, so adb was not tried: {reason}")
                return 1
            adb_faults.over_adb(campaign, n, *pair(adb_faults.BOARD, args.android_bundle, folder / "android"))
    if n["clock"] or n["power"]:
        if reason := missing():
            print(f"no full-system board, so neither clock nor power was tried: {reason}")
            campaign.report()
            return 1
        with tempfile.TemporaryDirectory(prefix="edgellm-faults-") as name:
            old, new = pair("virtual-rpi5", args.arm_bundle, Path(name) / "arm")
            power_cuts(campaign, n, old, new, Path(name))
    return campaign.report()


if __name__ == "__main__":
    sys.exit(main())
