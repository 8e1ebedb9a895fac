"""What all conversations begin with, computed when a bundle is compiled: system prompt and tools.

The bundle gets the KV cache of these tokens as one more file (runtime_c/FORMAT.md, State files), which the board maps:
nobody waits there for what is always the same. The arithmetic is fixed to the bit, so this machine's numbers are the
board's; a golden prompt that begins with them proves it there. A GPU keeps what it computed as the processor does
(crosscompile/gpu/cache.py, crosscompile/gpu/recurrent.py), so the same file is copied to it, and its numbers are as far
from the GPU's own as every logit may be; split bundles count all layers' states as one plan would.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosscompile.target import Target
from edgellm import bundle as bundles
from edgellm import cache, golden
from edgellm.bundle import Bundle
from edgellm.errors import UnsuitableError, UsageError

FILE = "weights/prefix.safetensors"
_MOST_BYTES = 100_000  # Linux takes 128 KiB in one argument of a command
_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Prefix:
    """system: the system prompt, or None for the template's own. tools: a JSON array as text, or None."""

    system: str | None = None
    tools: str | None = None


def read(system: str | None, tools: Path | None) -> Prefix | None:
    """The prefix that --system-prompt (a file's name, or the text itself) and --tools mean; None without both.

    Raises UsageError, naming file and reason.
    """
    if system is None and tools is None:
        return None
    with contextlib.suppress(OSError):  # a text may be too long for a name
        if system is not None and Path(system).is_file():
            system = _text(Path(system)).strip()
    try:
        n_bytes = 1 if system is None else len(system.encode())
    except UnicodeEncodeError as error:
        raise UsageError("--system-prompt: the text is not UTF-8") from error
    if not 0 < n_bytes <= _MOST_BYTES:
        raise UsageError(f"--system-prompt: {n_bytes} bytes; 1 to {_MOST_BYTES} are possible")
    if system is not None and "\0" in system:
        raise UsageError("--system-prompt: it has a NUL character; no prompt does")
    return Prefix(system, None if tools is None else _tools(tools))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _tools(file: Path) -> str:
    text = _text(file)
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--tools {file}: not JSON: {error}") from error
    if not isinstance(tools, list) or not tools:
        raise UsageError(f'--tools {file}: an array of tools is wanted: [{{"type": "function", "function": {{…}}}}]')
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(f'--tools {file}: tool {index} wants {{"type": "function", "function": {{"name": …}}}}')
    return text


def check(prefix: Prefix, template: str | None) -> None:
    """Raises UsageError where a template cannot have such a beginning, or would have another one tomorrow."""
    if template is None:
        if prefix.tools is not None:
            raise UsageError("--tools: this model has no chat template, so no way to be told of tools")
    elif "strftime_now" in template:
        raise UsageError(
            "--system-prompt: this model's chat template begins with today's date, so what is computed today does not "
            "fit tomorrow; send the system prompt with each conversation instead"
        )


def ship(
    base: Bundle,
    prefix: Prefix,
    twin: Callable[[Target], Bundle],
    show: Callable[[str, int, int], None],
    *,
    needs_gpu: bool = False,
) -> Bundle:
    """The bundle with the state of `prefix` in it, from the cache if it is there.

    twin: the same model compiled for a processor; called where this machine's cannot run `base` itself. show: is told
    the stage. needs_gpu: no processor runs the model alone, so its golden prompt gets logits to judge a GPU by. Raises
    UnsuitableError where nothing can run here, ModelError if the runtime fails.
    """
    host = golden.host_target()
    if host is None:
        raise UnsuitableError("--system-prompt: this machine cannot run a model (Linux on a CPU of 2013 or newer can)")
    key = cache.key_of({"bundle": base.sha256, "prefix": asdict(prefix), "version": 1})
    output = cache.root() / "bundles" / key
    with cache.locked(key):
        if found := bundles.intact(output):
            return found
        target = base.manifest["target"]
        is_native = not needs_gpu and (host.arch, host.tier.name) == (target["arch"], target["tier"])
        runs = base if is_native else twin(host)
        show("computing the prefix", 0, 0)
        with bundles.building(output) as partial:
            bundles.link(base, partial)
            tokens, prompt = _compute(runs, prefix, partial / FILE)
            (partial / FILE).chmod(0o644)  # saved sessions are private; this is as public as the weights
            answer = golden.continuation(runs.path, prompt)
            manifest: dict[str, Any] = {k: v for k, v in base.manifest.items() if k not in ("format", "files")}
            if needs_gpu:
                answer = golden.with_logits(runs.path, answer, int(manifest["model"]["vocab_size"]))
            among = manifest["golden"]  # of a GPU's, the longest stays the last one
            manifest["golden"] = [*among[:-1], answer, *among[-1:]] if needs_gpu else [*among, answer]
            manifest["prefix"] = {"file": FILE, "tokens": tokens, "tools": prefix.tools is not None}
            if prefix.system is not None:
                manifest["prefix"]["system"] = prefix.system
            bundles.seal(partial, manifest, lambda done, total: show("checksums", done, total))
        return bundles.read(output)


def _compute(runs: Bundle, prefix: Prefix, output: Path) -> tuple[int, list[int]]:
    """Writes the state; returns how many tokens it has, and the prompt of a question that begins with them."""
    command = [str(runs.path / "edgellm-rt"), "prefix", str(runs.path), "--output", str(output)]
    if prefix.system is not None:
        command += [f"--system={prefix.system}"]
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as tools:
        if prefix.tools is not None:
            tools.write(prefix.tools)
            tools.flush()
            command += ["--tools", tools.name]
        answer = json.loads(golden.output_of(command, "--system-prompt", _TIMEOUT_S))
    return int(answer["tokens"]), [int(token) for token in answer["ids"]]
