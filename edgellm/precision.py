"""What the matrices of a model are rounded to, and how well: a byte budget solved, calibration on text, both cached.

Forward passes are NumPy's (crosscompile.calibrate); sizes come from the target's packing.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosscompile.budget import Choice, solve
from crosscompile.calibrate import calibrate, kinds_of, noise_of
from crosscompile.calibrated import INDEX, CalibrationWriter
from crosscompile.checkpoint import Checkpoint
from crosscompile.forward import Values
from crosscompile.models import FAMILIES, name_of
from crosscompile.models.design import EMBEDDING, HEAD, Design
from crosscompile.models.schemes import WEIGHT_KINDS, Scheme, scheme_for
from crosscompile.packing import Packing
from crosscompile.target import Target
from edgellm import cache
from edgellm.errors import ModelError, UsageError
from edgellm.texts import Text, encode, read_texts
from edgellm.worker import Progress, request_of, run_worker

N_TOKENS = 65536
"""Of the texts, that calibration looks at."""
WINDOW = 512
"""Tokens of a stretch of text."""
LEAST_TOKENS = 1024
ENOUGH_CHARACTERS = 16
"""For one token: what is read of a file larger than that; the rest is not even cut into tokens."""
RUN = 8
"""Texts that stay together then."""
CHOICES, SMALL = ("w4a8", "w8a8"), ("w2a8", "w3a8")
"""What a budget chooses from, tensor by tensor, and what else where that is too large."""
FOLDER = "calibrations"


@dataclass(frozen=True)
class Options:
    """What decides the content of a bundle, besides checkpoint and target. None: the scheme's default."""

    scheme: str
    embedding: str | None = None
    head: str | None = None
    kv: str | None = None


@dataclass(frozen=True)
class Rounding:
    """How a model's matrices are rounded, where that is not plainly by its scheme.

    tensors: (parameter, scheme) of those that differ; calibration: name of its directory in the cache.
    """

    tensors: tuple[tuple[str, str], ...] = ()
    calibration: str | None = None

    @property
    def directory(self) -> Path | None:
        """Where the calibration's integers lie."""
        return None if self.calibration is None else cache.root() / FOLDER / self.calibration


PLAIN = Rounding()


@dataclass(frozen=True)
class Wish:
    """What a user asks for. calibrate: a file of texts; budget_bytes: what the weights may take at most."""

    calibrate: Path | None = None
    budget_bytes: int | None = None
    n_tokens: int = N_TOKENS


def content_of(source: Checkpoint, show: Progress) -> str:
    """The hash of a checkpoint's content."""
    files = source.paths
    total, done = sum(file.stat().st_size for file in files), 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        show("hashing the checkpoint", done, total)

    hashes = cache.content_hashes(files, count)
    return cache.key_of({file.name: digest for file, digest in hashes.items()})


def parse_bytes(text: str) -> int:
    """ "2.3GB", "900 MB", "1.5GiB" or a number of bytes. UsageError names what is meant."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"--budget {text!r} is no size; write 2.3GB, 900MB or a number of bytes")
    power = " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def design_of(source: Checkpoint) -> Design:
    """The checkpoint's network as data. ModelError where an installed package builds it."""
    name = name_of(source.config)
    if name not in FAMILIES:
        raise ModelError(
            f"{name} is built by an installed package, and only built-in families can be calibrated or fitted to a "
            f"budget; leave out --calibrate and --budget"
        )
    made = FAMILIES[name].design(source.config)
    if any(layer.selective is not None for layer in made.layers):
        raise ModelError(f"{name} has layers without attention, which cannot be calibrated or fitted to a budget yet; "
                         f"leave out --calibrate and --budget")  # fmt: skip
    return made


def windows(source: Checkpoint, context: int, file: Path, n_tokens: int) -> list[list[int]]:
    """Token ids of about n_tokens of a file's texts, in stretches taken evenly from all of it.

    context: positions that the model was made for; no stretch is longer.

    Raises UsageError where the file is not text, or too little of it.
    """
    ids: list[int] = []
    for sample in encode(source, _spread(read_texts(file, source), ENOUGH_CHARACTERS * n_tokens), n_tokens):
        ids += sample.ids
    length = min(WINDOW, context)
    if len(ids) < max(LEAST_TOKENS, length):
        raise UsageError(
            f"{file} has {len(ids)} tokens; calibration wants {LEAST_TOKENS} at least, and gets better up to {n_tokens}"
        )
    stretches = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    step = max(len(stretches) * length / n_tokens, 1.0)
    return [stretches[int(index * step)] for index in range(int(len(stretches) / step))]


def weight_bytes(source: Checkpoint, target: Target, scheme: Scheme) -> int:
    """Bytes of all weights under a scheme without exceptions, as the compiling process counts them."""
    parts = {"scheme": scheme.name, "embedding": scheme.embedding, "head": scheme.head, "kv": scheme.kv}
    request = {**request_of(source, target), **parts, "outline": True}
    return int(run_worker(request, None, lambda stage, done, total: None)["weight_bytes"])


def _spread(texts: list[Text], n_characters: int) -> list[Text]:
    """About n_characters of the texts, in runs of some that follow each other, taken evenly from all of them."""
    total = sum(len(text.text) for text in texts)
    if total <= n_characters:
        return texts
    runs = [texts[at : at + RUN] for at in range(0, len(texts), RUN)]
    wanted = max(int(len(runs) * n_characters / total), 1)
    return [text for index in range(wanted) for text in runs[index * len(runs) // wanted]]


def prepare(source: Checkpoint, target: Target, options: Options, wish: Wish, show: Progress) -> Rounding:
    """Solves the budget and calibrates, as far as `wish` says so.

    Raises UsageError for texts that are too short, QuantizeError where no choice fits the budget.
    """
    if wish.calibrate is None and wish.budget_bytes is None:
        return PLAIN
    made, scheme = design_of(source), scheme_for(options.scheme, options.embedding, options.head, options.kv)
    texts = None if wish.calibrate is None else windows(source, made.context, wish.calibrate, wish.n_tokens)
    tensors: tuple[tuple[str, str], ...] = ()
    if wish.budget_bytes is not None:
        tensors = _budgeted(source, made, target, scheme, texts, wish.budget_bytes, show)
        scheme = scheme_for(scheme.name, scheme.embedding, scheme.head, scheme.kv, tensors)
    if texts is None or wish.calibrate is None:
        return Rounding(tensors)
    kinds = kinds_of(made, scheme)
    if not kinds:
        raise UsageError(f"--calibrate: scheme {scheme.name} rounds nothing to integers; w4a8 and others do")
    return Rounding(tensors, _calibrated(source, made, content_of(source, show), kinds, texts, wish, show))


def _calibrated(
    source: Checkpoint,
    made: Design,
    content: str,
    kinds: Mapping[str, str],
    texts: Sequence[Sequence[int]],
    wish: Wish,
    show: Progress,
) -> str:
    """The name of a calibration in the cache, made if it is not there."""
    assert wish.calibrate is not None
    facts = {
        "checkpoint": content,
        "texts_sha256": hashlib.sha256(wish.calibrate.read_bytes()).hexdigest(),
        "tokens": sum(map(len, texts)),
    }
    key = cache.key_of({**facts, "kinds": kinds, "n_tokens": wish.n_tokens, "sources": cache.sources_digest()})
    folder = cache.root() / FOLDER
    folder.mkdir(exist_ok=True)
    with cache.locked(f"calibration-{key}"):
        if (folder / key / INDEX).is_file():
            return key
        partial = folder / f".{key}.{os.getpid()}.partial"
        shutil.rmtree(folder / key, ignore_errors=True)
        try:
            partial.mkdir()
            writer = CalibrationWriter(partial)
            show("calibrating", 0, len(kinds))
            calibrate(source, made, kinds, texts, writer, lambda done, total: show("calibrating", done, total))
            writer.finish(**facts)
            partial.rename(folder / key)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return key


def _budgeted(
    source: Checkpoint,
    made: Design,
    target: Target,
    scheme: Scheme,
    texts: Sequence[Sequence[int]] | None,
    budget_bytes: int,
    show: Progress,
) -> tuple[tuple[str, str], ...]:
    """The tensors whose scheme is not the scheme's own, so that all weights take at most budget_bytes."""
    values = Values(source, made)
    offered: tuple[str, ...] = (scheme.name, *CHOICES[1:])
    plain = scheme_for(scheme.name, scheme.name, scheme.name, scheme.kv)
    names = list(kinds_of(made, plain))
    smallest = weight_bytes(source, target, plain) + sum(4 * 2 * len(rope.inv_freq) for rope in made.ropes)
    if smallest > budget_bytes:
        offered = (*SMALL, *offered)
    show("weighing tensors", 0, len(names))
    kinds = [WEIGHT_KINDS[own] for own in offered]
    losses = noise_of(values, names, kinds, texts, lambda done, total: show("weighing tensors", done, total))
    choices, rest = [], smallest
    for name in names:
        sizes = {own: _stored_bytes(target, own, *values.shape(name)) for own in offered}
        rest -= sizes[scheme.name]
        choices.append(Choice(name, sizes, {own: losses[name][WEIGHT_KINDS[own]] for own in offered}))
    found = solve(choices, rest, budget_bytes)
    if made.tied:
        found[HEAD] = found[EMBEDDING]
    return tuple(sorted((name, own) for name, own in found.items() if own != default_of(scheme, name)))


def default_of(scheme: Scheme, name: str) -> str:
    """What a scheme without exceptions says of a parameter."""
    return {EMBEDDING: scheme.embedding, HEAD: scheme.head}.get(name, scheme.body)


def _stored_bytes(target: Target, own: str, rows: int, columns: int) -> int:
    form = Packing.parse(target.tier.packing(WEIGHT_KINDS[own]))
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in form.stored(rows, columns).values())
