"""Errors a user can act on.

    EdgeError                   everything below; the command line prints one line and exits 1
    ├── UsageError              the request makes no sense as it was put
    ├── BoardError              a board's manifest or instance is missing, wrong or ambiguous
    ├── BundleError             a bundle directory is missing, malformed or damaged
    ├── TrustError              a signature or a key is missing, wrong, or not one that is trusted
    ├── ModelError              a model cannot be found, fetched or compiled
    ├── QualityError            a model is changed more by its scheme than was allowed
    ├── PeerError               a program to compare with cannot be fetched, built, fed or run
    ├── VirtualBoardError       a virtual board cannot be prepared or started
    ├── UnsuitableError         the bundle does not fit this board: CPU, memory or disk
    ├── RemoteError             something went wrong on the way to a board or on it
    │   ├── UnreachableError    no connection: name, port, network
    │   ├── HostKeyError        the host key is unknown, or not the one that was recorded
    │   ├── LoginError          no key or password was accepted
    │   ├── LinkError           the connection broke or stalled
    │   ├── DiskFullError       no space left where a file was written
    │   └── CommandError        a command failed on the board
    └── RuntimeFailedError      edgellm-rt answered with a named error (status from edgellm.h)

A message says what failed, where, and what to do about it, in one line.
"""

from __future__ import annotations


class EdgeError(Exception):
    """Base of everything edgellm raises on purpose."""


class UsageError(EdgeError):
    """The request makes no sense as it was put."""


class BoardError(EdgeError):
    """A board's manifest or instance is missing, wrong or ambiguous."""


class BundleError(EdgeError):
    """A bundle directory is missing, malformed or damaged."""


class TrustError(EdgeError):
    """A signature or a key is missing, wrong, or not one that is trusted."""


class ModelError(EdgeError):
    """A model cannot be found, fetched or compiled."""


class QualityError(EdgeError):
    """A model is changed more by its scheme than was allowed."""


class PeerError(EdgeError):
    """A program to compare with cannot be fetched, built, fed or run."""


class VirtualBoardError(EdgeError):
    """A virtual board cannot be prepared or started."""


class UnsuitableError(EdgeError):
    """The bundle does not fit this board: CPU, memory or disk."""


class RemoteError(EdgeError):
    """Something went wrong on the way to a board or on it."""


class UnreachableError(RemoteError):
    """No connection: name, port or network."""


class HostKeyError(RemoteError):
    """The board's host key is unknown, or not the one that was recorded."""


class LoginError(RemoteError):
    """No key or password was accepted."""


class LinkError(RemoteError):
    """The connection broke or stalled."""


class DiskFullError(RemoteError):
    """No space left where a file was written."""


class CommandError(RemoteError):
    """A command failed on the board.

    status: its exit status; stderr: what it wrote there, control characters removed.
    """

    def __init__(self, message: str, status: int = -1, stderr: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.stderr = stderr


class RuntimeFailedError(EdgeError):
    """edgellm-rt answered with a named error.

    name: the status' name as in edgellm.h ("BUNDLE_CORRUPT"); status: its number, the exit code.
    """

    def __init__(self, message: str, name: str, status: int) -> None:
        super().__init__(message)
        self.name = name
        self.status = status
