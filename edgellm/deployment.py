"""Putting a bundle on a board: all of it, or nothing.

    survey    what lies there already
    check     CPU, memory and disk, with numbers, before the first byte
    transfer  into <slot>.part: unchanged files are hard links, half-sent ones go on where they stopped
    verify    every file's SHA-256 on the board; what was damaged there is sent again, once
    golden    the prompts of the manifest must give exactly the manifest's tokens
    activate  one rename

Until the last step the model that ran before is untouched. If something fails, the unfinished slot is removed; if
the connection is gone, that cannot be done, and the next deployment goes on from it or removes it.
"""

from __future__ import annotations

import posixpath
import time
from dataclasses import dataclass
from pathlib import Path

from edgellm import bundle as bundles
from edgellm.bundle import Bundle
from edgellm.connection import model_name
from edgellm.errors import DiskFullError, EdgeError, LinkError, RuntimeFailedError, UnsuitableError
from edgellm.probe import Facts, check_disk, check_fit, probe
from edgellm.remote import FileToSend, Remote
from edgellm.runtime_program import PROGRAM, failure, runtime_argv
from edgellm.slots import PART, ModelFolder, Survey, content_of, is_complete, slot_name
from edgellm.terminal import size

_CORRUPT = "BUNDLE_CORRUPT"
_SLOWEST_HASH_BYTES_PER_S = 4 << 20  # a Pi Zero reading from its card; only how long we are willing to wait


@dataclass(frozen=True)
class Deployment:
    """What a deployment did.

    path           the slot on the board
    sent_bytes     over the network; kept_bytes were there already
    transfer_s     time spent sending; total_s from the first question to the switch
    unchanged      True if the board had this bundle in use already
    """

    name: str
    path: str
    sent_bytes: int
    kept_bytes: int
    transfer_s: float
    total_s: float
    unchanged: bool


class Reporter:
    """Told what happens; this one keeps silent. Everything is called from the thread that deploys."""

    def stage(self, text: str) -> None:
        """A step begins: "verifying on the board"."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def transfer_begins(self, n_bytes: int) -> None:
        """n_bytes are about to be sent."""

    def transferred(self, n_bytes: int) -> None:
        """n_bytes more were sent."""

    def transfer_ends(self) -> None: ...


@dataclass(frozen=True)
class _Plan:
    """How each file gets into the unfinished slot. links: (slot, path there, path); sends: path -> byte to start at."""

    links: tuple[tuple[str, str, str], ...]
    sends: dict[str, int]
    removals: tuple[str, ...]


def deploy(
    bundle: Bundle | str | Path,
    remote: Remote,
    *,
    name: str | None = None,
    facts: Facts | None = None,
    reporter: Reporter | None = None,
    verify: bool = False,
) -> Deployment:
    """Puts `bundle` on the board and switches over to it.

    name      what the model is called there; by default what the bundle says
    facts     an answer of `probe`, if there is one already
    verify    hash everything on the board even if it is there already
    Raises BundleError, UnsuitableError, RemoteError or RuntimeFailedError; the board then still has what it had.
    """
    began = time.monotonic()
    reporter = reporter or Reporter()
    if not isinstance(bundle, Bundle):
        bundle = bundles.read(bundle)
    facts = facts or probe(remote)
    if warning := check_fit(bundle, facts, remote.name):
        reporter.note(warning)
    folder = ModelFolder(remote, facts.home, model_name(name or bundle.name))
    return _Deployer(bundle, remote, folder, facts, reporter).run(verify, began)


class _Deployer:
    """One deployment under way."""

    def __init__(self, bundle: Bundle, remote: Remote, folder: ModelFolder, facts: Facts, reporter: Reporter) -> None:
        self._bundle, self._remote, self._folder = bundle, remote, folder
        self._facts, self._reporter = facts, reporter
        self._slot = slot_name(bundle)
        self._part = self._slot + PART
        self._sizes = dict(content_of(bundle))
        self._sent_bytes = 0
        self._transfer_s = 0.0

    def run(self, verify: bool, began: float) -> Deployment:
        survey = self._folder.survey()
        unchanged = self._is_there(survey, verify)
        if not unchanged:
            plan = self._plan(survey)
            needed = sum(self._sizes[path] - start for path, start in plan.sends.items())
            check_disk(needed, self._facts, self._remote.name)
            try:
                self._build(plan)
                self._folder.activate(self._part, self._slot)
            except BaseException as error:
                self._clean_up(error)
                raise
        elif survey.current != self._slot or set(survey.slots) - {self._slot}:
            self._folder.activate(self._part, self._slot)
            unchanged = survey.current == self._slot
        kept = max(0, sum(self._sizes.values()) - self._sent_bytes)
        path = self._folder.slot_path(self._slot)
        total_s = time.monotonic() - began
        name = posixpath.basename(self._folder.path)
        return Deployment(name, path, self._sent_bytes, kept, self._transfer_s, total_s, unchanged)

    def _is_there(self, survey: Survey, verify: bool) -> bool:
        """True if the slot exists and is sound. `info` opens the model, which checks all but unchanged weights."""
        slot = survey.slots.get(self._slot)
        if slot is None or not is_complete(slot, self._bundle):
            return False
        self._reporter.stage("checking what is on the board")
        try:
            self._runtime(self._slot, "verify" if verify else "info")
        except (RuntimeFailedError, UnsuitableError) as error:
            self._reporter.note(f"the copy on the board is damaged and is sent again: {error}")
            return False
        return True

    def _plan(self, survey: Survey) -> _Plan:
        digests = {file.path: file.sha256 for file in self._bundle.files}
        part = survey.slots.get(self._part)
        links: list[tuple[str, str, str]] = []
        sends: dict[str, int] = {}
        for path, n_bytes in self._sizes.items():
            done = part.sizes.get(path, 0) if part else 0
            if part and path in part.sizes and done == n_bytes:
                continue
            held = survey.holding(digests[path], n_bytes) if path in digests else None
            if held is not None:
                links.append((*held, path))
            else:
                sends[path] = done if 0 < done < n_bytes else 0
        there = part.sizes if part else {}
        removals = tuple(path for path in there if path not in self._sizes or sends.get(path) == 0)
        return _Plan(tuple(links), sends, removals)

    def _build(self, plan: _Plan) -> None:
        folders = {posixpath.dirname(path) for path in self._sizes} - {""}
        self._folder.prepare(self._part, plan.links, plan.removals, folders)
        self._send(plan.sends)
        self._reporter.stage("verifying every file on the board")
        try:
            self._runtime(self._part, "verify")
        except RuntimeFailedError as error:
            if error.name != _CORRUPT:
                raise
            self._send_damaged(error)
            self._runtime(self._part, "verify")
        if self._bundle.manifest.get("golden"):
            self._reporter.stage("asking the golden prompts")
            self._runtime(self._part, "golden")

    def _send(self, sends: dict[str, int]) -> None:
        part = self._folder.slot_path(self._part)
        began = time.monotonic()
        self._reporter.transfer_begins(sum(self._sizes[path] - start for path, start in sends.items()))
        try:
            for path, start in sends.items():
                if start:
                    there = posixpath.join(part, path)
                    self._remote.put(self._bundle.path / path, there, offset=start, progress=self._count)
            whole = [FileToSend(self._bundle.path / path, path, path == PROGRAM) for path in sends if not sends[path]]
            self._remote.put_all(whole, part, progress=self._count)
        except DiskFullError as error:
            free = probe(self._remote).disk_free_bytes
            missing = sum(self._sizes[path] - start for path, start in sends.items())
            raise DiskFullError(
                f"no space on {self._remote.name}: {size(missing)} are needed in {self._folder.path}, "
                f"{size(free)} are free now; remove files there"
            ) from error
        finally:
            self._transfer_s += time.monotonic() - began
            self._reporter.transfer_ends()

    def _count(self, n_bytes: int) -> None:
        self._sent_bytes += n_bytes
        self._reporter.transferred(n_bytes)

    def _send_damaged(self, error: RuntimeFailedError) -> None:
        """Sends again what does not have its checksum on the board: a damaged copy, or a cut-off earlier transfer."""
        wanted = {file.path: file.sha256 for file in self._bundle.files}
        found = self._folder.digests(self._part, list(wanted))
        damaged = {path: 0 for path, digest in wanted.items() if found.get(path) != digest}
        if not damaged:  # then the manifest itself, which is small
            damaged = {path: 0 for path in self._sizes if path not in wanted}
        self._reporter.note(f"{len(damaged)} damaged file(s) on the board are sent again: {error}")
        self._folder.prepare(self._part, (), damaged, set())
        self._send(damaged)

    def _runtime(self, slot: str, command: str) -> None:
        silence_s = 120 + sum(self._sizes.values()) / _SLOWEST_HASH_BYTES_PER_S
        argv = runtime_argv(self._folder.slot_path(slot), command, "--json")
        result = self._remote.run(argv, silence_s=silence_s)
        if result.status != 0:
            raise failure(self._remote, f"{PROGRAM} {command}", result.status, result.stderr)

    def _clean_up(self, error: BaseException) -> None:
        if isinstance(error, LinkError):
            return  # nothing can be said to the board; the next deployment goes on from here
        try:
            self._folder.remove(self._part)
        except EdgeError as second:
            self._reporter.note(f"could not remove the unfinished copy {self._folder.slot_path(self._part)}: {second}")
