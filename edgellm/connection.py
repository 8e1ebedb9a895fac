"""From `--board` and `--host` to a connected Remote."""

from __future__ import annotations

import os
import re

from edgellm.address import ADB, AdbAddress, SshAddress, parse_where
from edgellm.boards import LOCAL, Board, find_board
from edgellm.errors import UsageError
from edgellm.local_remote import LocalRemote
from edgellm.remembered import recall
from edgellm.remote import Remote


def connect(board: Board | str, host: str | None = None) -> Remote:
    """Connects to a board; starts it first if it is a virtual one.

    board: a Board, an instance's name or a type's id. host: "user@host[:port]" or "adb[:SERIAL]"; by default the
    instance's, or where this board was deployed to last. Raises BoardError, UsageError, VirtualBoardError or
    RemoteError.
    """
    if isinstance(board, str):
        board = find_board(board, host)
    if board.id == LOCAL and board.host is None:
        return LocalRemote(board.label)
    if board.virtual and board.host is None:
        from edgellm import virtual
        from edgellm.board_cli import shown_progress

        with shown_progress() as progress:
            where = virtual.start(board, progress)
    else:
        where = address_of(board)
    if isinstance(where, AdbAddress):
        from edgellm.adb import AdbRemote

        return AdbRemote(where, board.label)
    from edgellm.ssh import SshRemote  # paramiko takes a while to import, and nothing else has use for it

    return SshRemote(where, board.label)


def address_of(board: Board) -> SshAddress | AdbAddress:
    """Where a board of one's own is reached. Raises UsageError if nobody ever said."""
    android = board.os == "android"
    if board.host is None:
        last = recall(board.label).host
        if last is not None:
            return parse_where(last, android)
        if android:
            return AdbAddress()
        raise UsageError(
            f"where is {board.label}? Add --host user@address, or give it a name once: "
            f"edgellm boards add mine {board.id} user@address"
        )
    if board.host.partition(":")[0] == ADB:
        return parse_where(board.host, android)
    user, _, name = board.host.rpartition("@")
    return SshAddress(name, board.port if board.port != 22 else None, user or None)


def model_name(text: str) -> str:
    """A model's folder name on a board, from any name: letters, digits, dot, dash and underscore."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(text.rstrip("/"))).strip("-.")
    if not cleaned:
        raise UsageError(f"'{text}' cannot be a model's name on a board; pass --name with letters and digits")
    return cleaned[:64]
