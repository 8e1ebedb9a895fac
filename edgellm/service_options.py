"""What a service of a model is made with: asked for by a command, or read from one that is on a board already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgellm import serving
from edgellm.errors import CommandError
from edgellm.terminal import one_line


@dataclass(frozen=True)
class Wanted:
    """What a service should be.

    options: of the server, as words. keep: what was computed of conversations outlives the server, in a folder of its
    own.
    """

    port: int = serving.DEFAULT_PORT
    options: tuple[str, ...] = ()
    keep: bool = False

    @property
    def sessions(self) -> int | None:
        return self._number("--sessions")

    @property
    def context(self) -> int | None:
        return self._number("--context")

    def _number(self, option: str) -> int | None:
        """The value of an option; None if it is not there, or is for the server to refuse."""
        text = self.options[self.options.index(option) + 1 :][:1] if option in self.options else ()
        return int(text[0]) if text and _is_number(text[0]) else None

    def with_options(self, given: Mapping[str, int]) -> tuple[str, ...]:
        """Its options with these values; those that are there already stay where they are."""
        words = list(self.options)
        for name, value in given.items():
            if (option := f"--{name}") in words:
                place = words.index(option) + 1
                words[place : place + 1] = [str(value)]
            else:
                words += [option, str(value)]
        return tuple(words)


def read_options(words: Sequence[str], board: str) -> Wanted:
    """What a server with these arguments was made with; options that are unknown here stay as they are.

    words: what follows the model's folder, as a board called `board` says. Raises CommandError without a port.
    """
    port, keep, options = "", False, []
    rest = iter(words)
    for word in rest:
        if word == "--port":
            port = next(rest, "")
        elif word == "--keep":
            keep = next(rest, "") != ""
        else:
            options.append(word)
    if not _is_number(port):
        raise CommandError(
            f"{board}: the service there has no port that can be read: '{one_line(' '.join(words), 120)}'; make it "
            "anew with the options that you want: edgellm service install"
        )
    return Wanted(int(port), tuple(options), keep)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 8
