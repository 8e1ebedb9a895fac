"""A model here and with a peer, from its checkpoint to the document of what was measured."""

from __future__ import annotations

import contextlib
import datetime
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crosscompile import checkpoint
from crosscompile.checkpoint import Checkpoint
from edgellm import __version__, cache, gguf_file, gguf_llama, hub, peer, peer_result
from edgellm.bandwidth import build_probe
from edgellm.boards import load_board
from edgellm.bundle import Bundle
from edgellm.compile import Options, compile_checkpoint
from edgellm.cross_peer import Processor
from edgellm.errors import ModelError
from edgellm.golden import host_target
from edgellm.peer_bench import BLOCK, Figure, Match, cells, measure, sizes
from edgellm.sample import Quiet

Progress = Callable[[str, int, int], None]

MATCHES: dict[str, Options] = {
    "w4a8": Options("w4a8"),
    "w8a8": Options("w8a8"),
    "w4a8-head4": Options("w4a8", embedding="w4a8", head="w4a8"),
}
"""What is compared, by name; the peer gets the same bits in every tensor (edgellm.gguf_llama)."""


class Comparison:
    """The peer, the probe and how to measure, set up once. Raises PeerError for what is missing."""

    def __init__(self, build: Path | None, rounds: int, quiet: Quiet, progress: Progress) -> None:
        target = host_target()
        if target is None:
            raise ModelError("a comparison runs here, and this machine's CPU has no tier to run")
        self._target, self._rounds, self._quiet, self._progress = target, rounds, quiet, progress
        self._peer, self._probe = peer.find(build, progress), build_probe(target)

    def measure(
        self, model: str, matches: Sequence[str], figures: Sequence[Figure], threads: Sequence[int]
    ) -> dict[str, Any]:
        """One interleaved run of a model, as edgellm.peer_result's document."""
        with self._prepared(model, matches, figures) as prepared:
            rows = measure(cells(prepared, threads), self._rounds, self._peer, self._probe, self._quiet, self._progress)
            measured = {f"{match.bundle.name}, {match.label}": sizes(match.bundle, self._peer) for match in prepared}
        return document(self._target.tier.name, self._peer.commit(), rows=rows, sizes=measured)

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
                file = gguf_of(source, made.bundle, self._progress)
                prepared.append(Match(label, made.bundle, file, prompt, fitting))
            yield prepared


def count(model: str, matches: Sequence[str], processors: Sequence[Processor], progress: Progress) -> dict[str, Any]:
    """Emulated instructions of a model, as edgellm.peer_result's document."""
    from edgellm.emulated_bench import counter, counts

    emulators = counter(progress)
    path, name = hub.resolve(model, progress)
    source = checkpoint.load(path)

    def gguf(bundle: Bundle) -> Path:
        return gguf_of(source, bundle, progress)

    found = [
        entry
        for processor in processors
        for label in matches
        for entry in counts(source, name, label, MATCHES[label], processor, gguf, emulators, progress)
    ]
    target = host_target()
    return document(target.tier.name if target else "", None, instructions=found)


def document(
    tier: str,
    commit: str | None,
    *,
    rows: Sequence[dict[str, Any]] = (),
    sizes: dict[str, dict[str, int]] | None = None,
    instructions: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """What was measured, with where and when. commit: what the peer's build calls itself, if there is one."""
    local = load_board("local")
    taken = {"taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    package = {"name": "llama.cpp", "package": f"{peer.PACKAGE} {peer.VERSION}"}
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
        "peer": {**package, **({"commit": commit} if commit else {})},
        "rows": [{**row, **taken} for row in rows],
        "sizes": sizes or {},
        "instructions": [{**entry, **taken} for entry in instructions],
    }


def fit(figures: Sequence[Figure], context: int) -> tuple[Figure, ...]:
    """The figures, none deeper than the model's context allows; what does not fit at all is left out."""
    shallower = [replace(it, depth=min(it.depth, (context - it.tokens) // BLOCK * BLOCK)) for it in figures]
    return tuple(dict.fromkeys(it for it in shallower if it.depth >= 0 and it.tokens < context))


def gguf_of(source: Checkpoint, bundle: Bundle, progress: Progress) -> Path:
    """The peer's file with the bundle's numbers, written if the cache does not have it."""
    scheme = {part: bundle.manifest["scheme"][part] for part in ("body", "embedding", "head")}
    writer = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (gguf_file, gguf_llama)]
    key = cache.key_of({"checkpoint": bundle.manifest["provenance"]["checkpoint"], "scheme": scheme, "writer": writer})
    file = cache.root() / "peers" / "gguf" / f"{bundle.name}-{key[:12]}.gguf"
    file.parent.mkdir(parents=True, exist_ok=True)
    with cache.locked(key):
        if not file.is_file():
            gguf_llama.write_llama(source, bundle.name, scheme, file, progress)
    return file


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
