"""What was deployed last to each board, so that `edgellm chat --board B` needs neither --host nor --model, and what the
driver of its GPU said.

Kept in deployments.json of the user's state directory (XDG_STATE_HOME). Losing it loses only convenience.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from edgellm.files import write_atomically
from edgellm.gpu_facts import VulkanSection


@dataclass(frozen=True)
class Remembered:
    """host: "user@host[:port]" or "adb:SERIAL", given with --host, if it was; model: its name on the board."""

    host: str | None = None
    model: str | None = None


def state_path() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "edgellm" / "deployments.json"


def recall(label: str) -> Remembered:
    """What is known of a board, by its label; nothing if it was never deployed to."""
    entry = _read().get(label, {})
    host, model = entry.get("host"), entry.get("model")
    return Remembered(host if isinstance(host, str) else None, model if isinstance(model, str) else None)


def remember(label: str, what: Remembered) -> None:
    """Records a deployment, in place of the board's last one."""
    _add(label, asdict(what))


def remember_gpu(label: str, where: str, section: VulkanSection) -> None:
    """Records what a board's driver said, in place of what it said before. where: which board that is."""
    _add(label, {"gpu": asdict(section), "asked": where})


def recall_gpu(label: str, where: str) -> dict[str, object] | None:
    """What a board's driver said when it was asked last, as it was recorded: not checked.

    None: never, or the name was another board's then.
    """
    entry = _read().get(label, {})
    found = entry.get("gpu")
    return found if isinstance(found, dict) and entry.get("asked") == where else None


def _add(label: str, values: dict[str, object]) -> None:
    known = _read()
    write_atomically(state_path(), json.dumps({**known, label: {**known.get(label, {}), **values}}, indent=1).encode())


def _read() -> dict[str, dict[str, object]]:
    try:
        document = json.loads(state_path().read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # ValueError: somebody edited it; the next deploy writes it anew
        return {}
    return {k: v for k, v in document.items() if isinstance(v, dict)} if isinstance(document, dict) else {}
