"""A model here and with a peer, from its checkpoint to the document of what was measured."""

from __future__ import annotations

import contextlib
import datetime
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from crosscompile import checkpoint
from crosscompile.checkpoint import Checkpoint
from edgellm import __version__, hub, peer_result
from edgellm.bandwidth import build_probe
from edgellm.boards import load_board
from edgellm.compile import compile_checkpoint
from edgellm.cross_peer import Processor
from edgellm.errors import ModelError
from edgellm.figure import Figure, fit
from edgellm.golden import host_target
from edgellm.litert_lm import LiteRtLm
from edgellm.llama_cpp import PACKAGED, LlamaCpp
from edgellm.peer import Peer
from edgellm.peer_bench import Match, cells, measure, sizes
from edgellm.precision import Options
from edgellm.sample import Quiet

Progress = Callable[[str, int, int], None]

PEERS: dict[str, type[Peer]] = {kind.name: kind for kind in (LlamaCpp, LiteRtLm)}
"""What there is to compare with, by name."""

MATCHES: dict[str, Options] = {
    "w4a8": Options("w4a8"),
    "w8a8": Options("w8a8"),
    "w4a8-head4": Options("w4a8", embedding="w4a8", head="w4a8"),
}
"""What is compared, by name; a peer that can gets the same bits in every tensor (edgellm.gguf_llama)."""


class Comparison:
    """The peer, the probe and how to measure, set up once. Raises PeerError for what is missing."""

    def __init__(self, kind: type[Peer], build: Path | None, rounds: int, quiet: Quiet, progress: Progress) -> None:
        target = host_target()
        if target is None:
            raise ModelError("a comparison runs here, and this machine's CPU has no tier to run")
        self._target, self._rounds, self._quiet, self._progress = target, rounds, quiet, progress
        self._peer, self._probe = kind.find(build, progress), build_probe(target)

    def measure(
        self, model: str, matches: Sequence[str], figures: Sequence[Figure], threads: Sequence[int]
    ) -> dict[str, Any]:
        """One interleaved run of a model, as edgellm.peer_result's document."""
        with self._prepared(model, matches, figures) as prepared:
            rows = measure(cells(prepared, threads), self._rounds, self._peer, self._probe, self._quiet, self._progress)
            measured = {f"{match.bundle.name}, {match.label}": sizes(match.bundle, self._peer) for match in prepared}
        about = self._peer.about()
        if self._peer.note:
            about["note"] = self._peer.note
        return document(self._target.tier.name, {self._peer.name: about}, rows=rows, sizes=measured)

    @contextlib.contextmanager
    def _prepared(self, model: str, matches: Sequence[str], figures: Sequence[Figure]) -> Iterator[list[Match]]:
        """Bundles and the peer's files of a model, with a prompt for the figure that starts with text."""
        path, name = hub.resolve(model, self._progress)
        source = checkpoint.load(path)
        with tempfile.TemporaryDirectory(prefix="edgellm-bench-") as folder:
            n_tokens = next((figure.tokens for figure in figures if figure.kind == "first_token"), 1)
            prompt = Path(folder) / "prompt.txt"
            prompt.write_text(prompt_text(source, n_tokens), encoding="utf-8")
            prepared = []
            for label in matches:
                made = compile_checkpoint(source, name, self._target, MATCHES[label], progress=self._progress)
                fitting = fit(figures, int(made.bundle.manifest["model"]["context_length"]))
                theirs = self._peer.prepare(source, made.bundle, fitting, self._progress)
                prepared.append(Match(label, made.bundle, theirs, prompt, fitting))
            yield prepared


def count(model: str, matches: Sequence[str], processors: Sequence[Processor], progress: Progress) -> dict[str, Any]:
    """Emulated instructions of a model, as edgellm.peer_result's document; the peer is llama.cpp."""
    from edgellm.emulated_bench import counter, counts

    emulators = counter(progress)
    path, name = hub.resolve(model, progress)
    source = checkpoint.load(path)
    found = [
        entry
        for processor in processors
        for label in matches
        for entry in counts(source, name, label, MATCHES[label], processor, emulators, progress)
    ]
    target = host_target()
    return document(target.tier.name if target else "", {LlamaCpp.name: PACKAGED}, instructions=found)


def document(
    tier: str,
    peers: dict[str, dict[str, str]],
    *,
    rows: Sequence[dict[str, Any]] = (),
    sizes: dict[str, dict[str, int]] | None = None,
    instructions: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """What was measured, with where and when. peers: what each says about itself (edgellm.peer)."""
    local = load_board("local")
    taken = {"taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    return {
        "format": peer_result.FORMAT,
        "edgellm": __version__,
        "machine": {
            "cpu": local.cpu,
            "n_cores": local.n_cores,
            "tier": tier,
            "ram_bytes": local.memory_bytes,
            "kernel": platform.release(),
        },
        "peers": peers,
        "rows": [{**row, **taken} for row in rows],
        "sizes": sizes or {},
        "instructions": [{**entry, **taken} for entry in instructions],
    }


def prompt_text(source: Checkpoint, n_tokens: int) -> str:
    """English that the checkpoint's tokenizer makes exactly n_tokens of, what it adds included. Raises ModelError."""
    from tokenizers import Tokenizer

    if source.tokenizer_json is None:
        raise ModelError(f"{source.path} has no tokenizer.json")
    tokenizer = Tokenizer.from_str(source.tokenizer_json.decode("utf-8"))
    words = "the quick program reads a file and writes a line to the output of that other one when it is done".split()
    text = ""
    for i in range(20 * n_tokens):
        for word in (words[i % len(words)], "a"):
            longer = f"{text} {word}".strip()
            n = len(tokenizer.encode(longer).ids)
            if n == n_tokens:
                return longer
            if n < n_tokens:
                text = longer
                break
    raise ModelError(f"{source.path}: no text of exactly {n_tokens} tokens was found; choose another --figures first@N")
