"""The tools that the model may call, as OpenAI's API describes them, and as it was trained with them."""

from __future__ import annotations

from typing import Any

_DEVICE = {"device": {"type": "string"}}
_ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "turn_on": ("Turn a device on", _DEVICE),
    "turn_off": ("Turn a device off", _DEVICE),
    "lock": ("Lock a door", _DEVICE),
    "unlock": ("Unlock a door", _DEVICE),
    "open": ("Open a cover", _DEVICE),
    "close": ("Close a cover", _DEVICE),
    "set_brightness": ("Set a light's brightness", _DEVICE | {"percent": {"type": "integer"}}),
    "set_temperature": ("Set a room's temperature", {"room": {"type": "string"}, "degrees": {"type": "integer"}}),
    "set_timer": ("Start a timer", {"minutes": {"type": "integer"}}),
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": list(properties)},
        },
    }
    for name, (description, properties) in _ARGUMENTS.items()
]
