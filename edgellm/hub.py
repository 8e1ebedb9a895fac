"""MODEL on the command line: a checkpoint directory or GGUF file, here or fetched from the Hub, or `random:SHAPE`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crosscompile import checkpoint
from crosscompile.checkpoint import GGUF, INDEX, SINGLE, TEXT_FILES, WORLD
from edgellm import shapes
from edgellm.errors import ModelError

_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_FILE = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(?P<file>[\w./-]+\.gguf)")
"""One GGUF file of a repository; such repositories hold many sizes of one model."""
_PART = re.compile(r"-\d{5}(-of-\d{5}\.gguf)$")

PATTERNS = (*TEXT_FILES, WORLD, SINGLE, INDEX, "model-*.safetensors")
"""Files that are fetched; repositories often hold the same weights in other formats too."""

Progress = Callable[[str, int, int], None]


def resolve(model: str | Path, progress: Progress | None = None) -> tuple[Path, str]:
    """(checkpoint directory or GGUF file, name for people).

    Fetches `org/name[@revision]`, or `org/name/FILE.gguf`, where no such path exists.
    Interrupted downloads resume; HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and HF_TOKEN mean what they mean to
    huggingface_hub. Raises ModelError.
    """
    if shapes.is_random(model):
        return shapes.make(str(model))
    path = Path(model).expanduser()
    if path.exists():
        return path, _name(path.resolve())
    if (one := _FILE.fullmatch(str(model))) and ".." not in one["file"].split("/"):
        if progress is not None:
            progress(f"fetching {one['file']}", 0, 0)
        pattern = _PART.sub(r"-*\1", one["file"])  # all parts of a split file
        folder = _fetch(one["name"], None, [pattern])
        if not (folder / one["file"]).is_file():
            raise ModelError(f"{one['name']} has no file {one['file']}; look at its files on the Hub")
        return folder / one["file"], Path(one["file"]).stem
    match = _ID.fullmatch(str(model))
    if not match or str(model).startswith((".", "/", "~")):
        raise ModelError(f"{model} does not exist; name a checkpoint directory or a Hub id such as org/name")
    if progress is not None:
        progress(f"fetching {match['name']}", 0, 0)
    return _fetch(match["name"], match["revision"]), _short(match["name"])


def _name(path: Path) -> str:
    """A name for people: the path's own, unless it says nothing (`voice_assistant/model`, a Hub snapshot)."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    if path.suffix == GGUF:
        return path.stem
    return path.parent.name if path.name in ("model", "checkpoint") and path.parent.name else path.name


def read_config(model: str | Path, progress: Progress | None = None) -> tuple[dict[str, Any], str]:
    """(config.json, name for people) of what `resolve` takes, or of a config.json itself. Fetches no weights.

    Raises ModelError, or ConfigError for a config.json that is none.
    """
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == GGUF:
        return checkpoint.read_config(path), path.stem
    if path.is_file():
        if path.name != "config.json":
            raise ModelError(f"{model} is a file; name a checkpoint directory, a Hub id or a config.json")
        return checkpoint.read_config(path.parent), _name(path.resolve().parent)
    if shapes.is_random(model) or path.exists():
        directory, name = resolve(model)
        return checkpoint.read_config(directory), name
    match = _ID.fullmatch(str(model))
    if not match or str(model).startswith((".", "/", "~")):
        raise ModelError(f"{model} does not exist; name a checkpoint directory, a config.json or a Hub id: org/name")
    if progress is not None:
        progress(f"fetching {match['name']}'s config.json", 0, 0)
    return checkpoint.read_config(_fetch(match["name"], match["revision"], ["config.json"])), _short(match["name"])


def _short(name: str) -> str:
    return name.partition("/")[2]


def _fetch(name: str, revision: str | None, patterns: Sequence[str] = PATTERNS) -> Path:
    """Downloads into huggingface_hub's cache; complete files are not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise ModelError(f"{name} needs its licence accepted on the Hub and a token: `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{name} is neither a directory nor on the Hub; check the name, or `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision}; leave it out for the newest") from error
    except LocalEntryNotFoundError as error:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise ModelError(f"{name} is not in the Hub cache and HF_HUB_OFFLINE is set; unset it once") from error
        raise ModelError(f"{name} cannot be fetched: the Hub is not reachable; check the network") from error
    except HfHubHTTPError as error:
        raise ModelError(f"{name} cannot be fetched: {str(error).splitlines()[0]}; run the command again") from error
    except OSError as error:
        raise ModelError(f"{name} cannot be fetched: {error}; run the command again, it resumes") from error
