"""Measures uploads against plain sftp on the same link: python -m tests.emulated.measure_upload --board virtual-rpi5

Sends a bundle-like folder (24 shards and some small files) with both, alternately, and prints the medians. The link
must be one that `sftp` can use without asking: a virtual board, or a host in ~/.ssh/config.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from crosscompile.runtime import build_runtime
from edgellm import virtual
from edgellm.address import SshAddress
from edgellm.board_session import BoardSession, install
from edgellm.boards import find_board
from edgellm.bundle import sha256_of
from edgellm.connection import address_of, connect
from edgellm.remote import Remote
from edgellm.terminal import size


def make_files(folder: Path, total_bytes: int) -> list[Path]:
    shards = 24
    for index in range(shards):
        (folder / f"layer.{index}").write_bytes(os.urandom(total_bytes // shards))
    for name in ("manifest.json", "plan.json", "kernels.so"):
        (folder / name).write_bytes(os.urandom(50_000))
    return sorted(folder.iterdir())


def by_sftp(address: SshAddress, files: list[Path], there: str) -> float:
    command = ["sftp", "-q", "-b", "-"]
    if address.port:
        command += ["-P", str(address.port)]
    if address.key_path:
        command += ["-i", str(address.key_path), "-o", f"UserKnownHostsFile={address.known_hosts_path}"]
    command.append(f"{address.user}@{address.host}" if address.user else address.host)
    batch = "".join(f'put "{file}" "{there}/{file.name}"\n' for file in files)
    began = time.monotonic()
    subprocess.run(command, input=batch, text=True, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def by_edgellm(address: SshAddress, files: list[Path], there: str, digests: dict[Path, str]) -> float:
    from edgellm.ssh import SshRemote

    began = time.monotonic()
    # sftp's time has the connecting in it too
    with SshRemote(address) as remote, BoardSession(remote, there) as board:
        for file in files:
            board.send(file, digests[file], 0, False, None)
        board.collect()
    return time.monotonic() - began


def fresh(remote: Remote) -> str:
    return remote.script(
        'rm -rf "$HOME/.upload-test"; mkdir "$HOME/.upload-test"; echo "$HOME/.upload-test"'
    ).text.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="virtual-rpi5")
    parser.add_argument("--host")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote, tempfile.TemporaryDirectory() as folder:
        address = virtual.start(board) if board.virtual and not board.host else address_of(board)
        files = make_files(Path(folder), args.megabytes * 10**6)
        digests = {file: sha256_of(file) for file in files}
        n_bytes = sum(file.stat().st_size for file in files)
        seconds: dict[str, list[float]] = {"sftp": [], "edgellm": []}
        for _ in range(args.repeat):
            seconds["sftp"].append(by_sftp(address, files, fresh(remote)))
            install(remote, there := fresh(remote), build_runtime(board.target()))
            seconds["edgellm"].append(by_edgellm(address, files, there, digests))
        remote.script('rm -rf "$HOME/.upload-test"')
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<8} {size(n_bytes)} in {median:.2f} s: {size(n_bytes / median)}/s")
    ratio = medians["sftp"] / medians["edgellm"]
    print(f"edgellm reaches {ratio:.0%} of sftp's rate, with every file hashed and flushed to the disk")
    return 0 if ratio >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
