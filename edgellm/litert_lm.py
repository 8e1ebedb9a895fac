"""LiteRT-LM, to compare with: its Python packages in an environment of their own, its export of the same checkpoint.

Both lie in the cache, below `peers`. An environment that exists can be used instead: a directory with bin/python.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from crosscompile.checkpoint import Checkpoint
from edgellm import cache, litert_export, litert_sample
from edgellm.bundle import Bundle
from edgellm.errors import PeerError
from edgellm.figure import Figure
from edgellm.full_checkpoint import write_full
from edgellm.peer import PARTS, Peer, Progress, Run, given, run_tool, stripped_bytes
from edgellm.sample import Sample, run_once
from edgellm.terminal import one_line

PYTHON = "bin/python"
LIBRARY = "lib/python*/site-packages/litert_lm/liblitert-lm.so"

REQUIREMENTS = ("litert-lm-api==0.18.1", "litert-torch==0.10.0", "torch==2.13.0", "transformers==5.24.0")
"""The program, and what exports a checkpoint for it. Exact, for another release may be another speed."""

SHORTEST = 512
"""Positions of the smallest export: with all of a longer one's cache in each token, LiteRT-LM is slower."""

STEP = 128
"""Tokens of a prompt that an export reads at a time, unless told otherwise."""

_PACKAGES = tuple(requirement.partition("==")[0] for requirement in REQUIREMENTS)
_EXPORT_S = 4 * 3600.0
_VERSIONS = "import importlib.metadata as m, sys; [print(name, m.version(name)) for name in sys.argv[1:]]"


class LiteRtLm(Peer):
    """An environment with LiteRT-LM. directory: of the environment."""

    name = "litert-lm"
    note = (
        "its int8 has one scale per output channel (recipe `dynamic_wi8_afp32`, the default) where `w8a8` and `w4a8` "
        "have one per 32 columns: coarser numbers, and fewer multiplications. Bits are not equal, and `w4a8` rows set "
        "4 bits beside its 8. Its KV cache has as many positions as were chosen at export: the fewest that fit, from "
        f"{SHORTEST} on. Its prefill leaves the logits of the last token to the first decoded one. Its peak memory "
        "includes the Python that calls it."
    )
    weights = ("w8a8", "w4a8")
    figures = (Figure("decode", 64, 0), Figure("decode", 64, 128), Figure("prefill", 128), Figure("prefill", 512))
    kinds = ("decode", "prefill")
    build_programs = (PYTHON,)

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def find(cls, build: Path | None, progress: Progress) -> LiteRtLm:
        return cls(environment(progress) if build is None else given(build, cls.build_programs))

    def about(self) -> dict[str, str]:
        answer = run_once([str(self.directory / PYTHON), "-I", "-c", _VERSIONS, *_PACKAGES[:2]]).out
        return {"package": ", ".join(one_line(line, 60) for line in answer.splitlines())}

    def prepare(self, source: Checkpoint, bundle: Bundle, figures: Sequence[Figure], progress: Progress) -> Path:
        """A folder with an export for each cache length that the figures need."""
        key = cache.key_of({
            "checkpoint": bundle.manifest["provenance"]["checkpoint"],
            "peer": self.about(),
            "exporter": Path(litert_export.__file__ or "").read_text(encoding="utf-8"),
        })  # fmt: skip
        folder = cache.root() / "peers" / "litert" / f"{bundle.name}-{key[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        with cache.locked(key):
            wanted = sorted({cache_length(figure) for figure in figures})
            if missing := [length for length in wanted if not _file(folder, length).is_file()]:
                self._export(source, folder, missing, progress)
        return folder

    def _export(self, source: Checkpoint, folder: Path, lengths: Sequence[int], progress: Progress) -> None:
        """Exports the checkpoint for each number of positions, whole or not at all."""
        with tempfile.TemporaryDirectory(dir=folder, prefix=".exporting-") as name:
            checkpoint = source.path
            if not any(checkpoint.glob("*.safetensors")):  # a random one, made when it is read
                checkpoint = Path(name) / "checkpoint"
                checkpoint.mkdir()
                write_full(source, checkpoint, progress)
            for n in lengths:
                progress(f"exporting for LiteRT, {n} positions", 0, 0)
                out = Path(name) / str(n)
                run_once([*self._python(litert_export), str(checkpoint), str(out), str(n)], _EXPORT_S)
                found = sorted(out.glob("*.litertlm"))
                if not found:
                    raise PeerError(f"litert-torch wrote no .litertlm file for {source.path}, and named no error")
                found[0].replace(_file(folder, n))

    def _python(self, module: ModuleType) -> list[str]:
        """Runs one of our files with the environment's Python, which must not find the files beside it as modules."""
        assert module.__file__ is not None
        return [str(self.directory / PYTHON), "-I", module.__file__]

    def types(self, scheme: Mapping[str, str]) -> dict[str, str]:
        return dict.fromkeys(PARTS, "int8, a scale per channel")

    def bytes_per_token(self, ours: int | None) -> int | None:
        """Not known: bits differ, and how much of its cache a token reads is its own affair."""
        return None

    def command(self, run: Run) -> list[str]:
        figure = run.figure
        prefill, decode = (max(figure.depth, 1), figure.tokens) if figure.kind == "decode" else (figure.tokens, 1)
        model = _file(run.model, cache_length(figure))
        sizes = map(str, (run.threads, prefill, decode))
        return [*self._python(litert_sample), str(model), *sizes]

    def value(self, run: Run, sample: Sample) -> float:
        n_tokens, tok_s = json.loads(sample.out)[run.figure.kind]
        if n_tokens != run.figure.tokens:
            raise ValueError(f"{n_tokens} tokens instead of {run.figure.tokens}")
        return float(tok_s)

    def program_bytes(self) -> int:
        """Its one library, which has everything."""
        return stripped_bytes(sorted(self.directory.glob(LIBRARY))[:1])


def cache_length(figure: Figure) -> int:
    """Positions of the export that a figure is measured with: the fewest, in whole steps of a prompt."""
    return max(SHORTEST, -(-figure.positions // STEP) * STEP)


def _file(folder: Path, length: int) -> Path:
    return folder / f"cache-{length}.litertlm"


def environment(progress: Progress) -> Path:
    """The environment in the cache, made with pip if need be. Raises PeerError."""
    key = cache.key_of({"requirements": REQUIREMENTS, "python": sys.version_info[:2]})[:12]
    folder = cache.root() / "peers" / f"litert-{key}"
    done = folder / ".installed"
    with cache.locked(folder.name):
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run has left
            folder.parent.mkdir(parents=True, exist_ok=True)
            venv.create(folder, symlinks=True)
            progress("installing LiteRT (2 GB)", 0, 0)
            pip = [sys.executable, "-m", "pip", "--python", str(folder / PYTHON), "install", "--quiet", *REQUIREMENTS]
            run_tool(pip, "check the network, pip's index and the disk's free space")
            done.touch()
    return folder
