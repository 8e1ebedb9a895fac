"""Putting a bundle on a board: all of it, or nothing.

    probe      CPU, memory and disk, with numbers, before the first byte
    survey     what lies there already, in a store of files by their SHA-256
    send       what is missing; half-sent files go on where they stopped, proven by the hashes of their blocks
    promote    on the board, by the edgellm-rt that lies outside the models: every file's SHA-256; the golden prompts
               must give exactly the manifest's tokens; speed and memory what the card says; then one rename

Until the last step the model that ran before is untouched, and afterwards it stays for `edgellm rollback`. What was
sent before something failed stays in the store for the next attempt; `edgellm gc` removes it.
"""

from __future__ import annotations

import contextlib
import posixpath
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm import bundle as bundles
from edgellm.board_session import BoardSession, Survey, ask_once, installed, proven_bytes, root_of
from edgellm.bundle import MANIFEST, SIGNATURE, Bundle, sha256_of
from edgellm.connection import model_name
from edgellm.encryption import MAP
from edgellm.errors import CommandError, DiskFullError, EdgeError
from edgellm.probe import Facts, check_disk, check_fit, probe
from edgellm.remote import Remote
from edgellm.runtime_program import PROGRAM
from edgellm.terminal import size
from edgellm.trust import Demand, admit, pin, put_secret

BESIDE = (SIGNATURE, MAP)
"""Files that lie beside a manifest, which does not list them."""


@dataclass(frozen=True)
class Deployment:
    """What a deployment did.

    path           the slot on the board
    sent_bytes     over the network; kept_bytes were there already
    transfer_s     time spent sending; total_s from the first question to the switch
    unchanged      True if the board had this bundle in use already
    proof          what the board found when it tried the model: golden, decode_tok_s, peak_rss_bytes, throttled, …
    """

    name: str
    path: str
    sent_bytes: int
    kept_bytes: int
    transfer_s: float
    total_s: float
    unchanged: bool
    proof: dict[str, Any] = field(default_factory=dict)


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


def deploy(
    bundle: Bundle | str | Path,
    remote: Remote,
    *,
    name: str | None = None,
    facts: Facts | None = None,
    reporter: Reporter | None = None,
    verify: bool = False,
    demand: Demand | None = None,
    secret: bytes | None = None,
) -> Deployment:
    """Puts `bundle` on the board and switches over to it.

    name      what the model is called there; by default what the bundle says
    facts     an answer of `probe`, if there is one already
    verify    hash everything on the board even if it is there already
    demand    by whom the bundle must be signed; the board's pinned keys count in any case
    secret    the board's key, if `bundle` is one that `encryption.encrypted` made
    Raises BundleError, TrustError, UnsuitableError, RemoteError or RuntimeFailedError; the board then still has what it
    had.
    """
    began = time.monotonic()
    reporter = reporter or Reporter()
    if not isinstance(bundle, Bundle):
        bundle = bundles.read(bundle)
    facts = facts or probe(remote)
    if warning := check_fit(bundle, facts, remote.name):
        reporter.note(warning)
    key = admit(bundle, remote, facts.home, demand or Demand())
    if secret is not None:
        put_secret(remote, facts.home, secret)
    done = _Deployer(bundle, remote, model_name(name or bundle.name), facts, reporter).run(verify, began)
    if key is not None:  # only now: pinned before, the model that was in use would not open if this one failed
        pin(remote, facts.home, [key])
        reporter.note(f"{remote.name} takes only bundles signed by key {key.short} from now on (`edgellm trust`)")
    return done


@dataclass(frozen=True)
class _File:
    """A file to put into the store."""

    path: Path
    sha256: str
    n_bytes: int
    executable: bool


class _Deployer:
    """One deployment under way."""

    def __init__(self, bundle: Bundle, remote: Remote, name: str, facts: Facts, reporter: Reporter) -> None:
        self._bundle, self._remote, self._name = bundle, remote, name
        self._facts, self._reporter = facts, reporter
        manifest = bundle.path / MANIFEST
        files = [_File(manifest, bundle.sha256, manifest.stat().st_size, False)]
        files += [_File(bundle.path / f.path, f.sha256, f.n_bytes, f.path == PROGRAM) for f in bundle.files]
        besides = [bundle.path / name for name in BESIDE if (bundle.path / name).is_file()]
        self._beside = {path.name: sha256_of(path) for path in besides}
        files += [_File(path, self._beside[path.name], path.stat().st_size, False) for path in besides]
        self._files = {file.sha256: file for file in files}  # what is in a bundle twice is sent once
        self._slot = bundle.sha256[:16]
        self._sent_bytes = 0
        self._transfer_s = 0.0

    def run(self, verify: bool, began: float) -> Deployment:
        program = self._bundle.path / PROGRAM
        self._reporter.stage("looking at what is on the board")
        try:
            told, note = self._told, self._reporter.note
            with installed(self._remote, self._facts.home, program, told, note, self._check_all) as board:
                survey = board.survey()
                model = survey.models.get(self._name)
                in_use = model is not None and model.current == self._slot
                answer = self._promote(board, survey, in_use, verify)
        except DiskFullError as error:
            raise self._disk_full(error) from error
        total = sum(file.n_bytes for file in self._files.values())
        path = posixpath.join(root_of(self._facts.home), "models", self._name, self._slot)
        unchanged = in_use and self._sent_bytes == 0
        kept = max(0, total - self._sent_bytes)
        total_s = time.monotonic() - began
        proof = {key: value for key, value in answer.items() if key not in ("promoted", "unchanged")}
        return Deployment(self._name, path, self._sent_bytes, kept, self._transfer_s, total_s, unchanged, proof)

    def _promote(self, board: BoardSession, survey: Survey, in_use: bool, verify: bool) -> dict[str, Any]:
        """Sends what is missing until nothing is: files may be found damaged on the board, once."""
        beside = [f"{name}={sha256}" for name, sha256 in self._beside.items()]
        if in_use and not verify and all(sha256 in survey.store for sha256 in self._beside.values()):
            self._reporter.stage("checking what is on the board")
            answer = board.ask("promote", self._name, self._bundle.sha256, "quick", *beside)
            damaged = self._missing(answer)
            if not damaged:
                return answer
            self._reporter.note(f"{len(damaged)} damaged file(s) on the board are sent again")
            survey = board.survey()
        wanted = [file for file in self._files.values() if survey.store.get(file.sha256) != file.n_bytes]
        if in_use and verify:
            # It is complete, so only hashing tells what is to be sent.
            wanted = [file for file in wanted if file.path.name in BESIDE]
        for attempt in range(3):
            if wanted:
                self._send(board, survey, wanted)
            self._reporter.stage("verifying every file on the board")
            answer = board.ask("promote", self._name, self._bundle.sha256, *beside)
            wanted = self._missing(answer)
            if not wanted:
                return answer
            if attempt < 2:
                self._reporter.note(f"{len(wanted)} damaged file(s) on the board are sent again")
                survey = board.survey()
        raise CommandError(
            f"{self._remote.name}: files come out damaged on the board again and again, {wanted[0].path.name} for one; "
            "its disk or memory may be failing"
        )

    def _missing(self, answer: dict[str, Any]) -> list[_File]:
        missing = answer.get("missing")
        keys = map(str, missing) if isinstance(missing, list) else ()
        return [self._files[key] for key in keys if key in self._files]

    def _send(self, board: BoardSession, survey: Survey, wanted: list[_File]) -> None:
        starts = {}
        for file in wanted:
            n_there = survey.parts.get(file.sha256, 0)
            starts[file.sha256] = proven_bytes(file.path, board.blocks(file.sha256), n_there) if n_there else 0
        needed = sum(file.n_bytes - starts[file.sha256] for file in wanted)
        copies = 0 if board.hard_links else sum(file.n_bytes for file in self._files.values())
        if copies:
            self._reporter.note(
                f"the file system of {self._remote.name} has no hard links, so versions cannot share files: this one "
                f"takes another {size(copies)}"
            )
        check_disk(needed + copies, self._facts, self._remote.name)
        began = time.monotonic()
        self._reporter.transfer_begins(needed)
        try:
            for file in wanted:
                board.send(file.path, file.sha256, starts[file.sha256], file.executable, self._count)
            board.collect()
        finally:
            self._transfer_s += time.monotonic() - began
            self._reporter.transfer_ends()

    def _check_all(self) -> None:
        check_disk(sum(file.n_bytes for file in self._files.values()), self._facts, self._remote.name)

    def _count(self, n_bytes: int) -> None:
        self._sent_bytes += n_bytes
        self._reporter.transferred(n_bytes)

    def _told(self, what: str, done: int, total: int) -> None:
        share = f": {100 * done // total} %" if total else ""
        self._reporter.stage(f"the board is {what}{share}" if what.endswith("ing") else f"asking the {what}")

    def _disk_full(self, error: DiskFullError) -> DiskFullError:
        """Leaves the board as it was, for a full disk harms others too, and says how much was needed."""
        needed = sum(file.n_bytes for file in self._files.values())
        with contextlib.suppress(EdgeError):
            ask_once(self._remote, self._facts.home, "gc")
        free = ""
        with contextlib.suppress(EdgeError):
            free = f", {size(probe(self._remote).disk_free_bytes)} are free now"
        return DiskFullError(
            f"no space on {self._remote.name}: {size(needed)} are needed in {root_of(self._facts.home)}{free}; "
            f"remove files there ({error})"
        )
