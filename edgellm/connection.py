"""From `--board` and `--host` to a connected Remote."""

from __future__ import annotations

import os
import re

from edgellm.address import SshAddress
from edgellm.boards import LOCAL, Board, find_board
from edgellm.errors import UsageError
from edgellm.local_remote import LocalRemote
from edgellm.remembered import recall
from edgellm.remote import Remote


def connect(board: Board | str, host: str | None = None) -> Remote:
    """Connects to a board; starts it first if it is a virtual one.

    board: a Board, an instance's name or a type's id. host: "user@host[:port]"; by default the instance's, or where
    this board was deployed to last. Raises BoardError, UsageError, VirtualBoardError or RemoteError.
    """
    if isinstance(board, str):
        board = find_board(board, host)
    if board.id == LOCAL and board.host is None:
        return LocalRemote(board.label)
    from edgellm.ssh import SshRemote  # paramiko takes a while to import, and `local` has no use for it

    if board.virtual and board.host is None:
        from edgellm import virtual
        from edgellm.board_cli import shown_progress

        with shown_progress() as progress:
            return SshRemote(virtual.start(board, progress), board.label)
    return SshRemote(address_of(board), board.label)


def address_of(board: Board) -> SshAddress:
    """Where a board of one's own is reached. Raises UsageError if nobody ever said."""
    host, port = board.host, board.port
    if host is None:
        last = recall(board.label).host
        if last is None:
            raise UsageError(
                f"where is {board.label}? Add --host user@address, or give it a name once: "
                f"edgellm boards add mine {board.id} user@address"
            )
        host, port = split_port(last)
    user, _, name = host.rpartition("@")
    return SshAddress(name, port if port != 22 else None, user or None)


def split_port(host: str) -> tuple[str, int]:
    """Cuts user@host:2222 into user@host and 2222; an IPv6 address has no brackets in what is returned."""
    from edgellm.address import parse_address

    where = parse_address(host)
    return (f"{where.user}@{where.host}" if where.user else where.host), where.port or 22


def model_name(text: str) -> str:
    """A model's folder name on a board, from any name: letters, digits, dot, dash and underscore."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(text.rstrip("/"))).strip("-.")
    if not cleaned:
        raise UsageError(f"'{text}' cannot be a model's name on a board; pass --name with letters and digits")
    return cleaned[:64]
