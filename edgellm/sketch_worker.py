"""The process that sketches models, as edgellm.compile_worker compiles them: `python -m edgellm.sketch_worker`.

Standard input holds one JSON request, {"config": …, "tiers": […], "schemes": [[name, embedding, head, kv], …]}: the
result has, for each scheme, a sketch by tier. {"count": true} gives crosscompile.inner_loop's table instead.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from crosscompile.errors import CompileError
from edgellm.compile_worker import Channel, begin


def work(request: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Answers one request."""
    if request.get("count"):
        from crosscompile.inner_loop import instruction_table

        channel.progress("counting instructions", 0, 0)
        return instruction_table()
    from crosscompile.models.architecture import scheme_for
    from crosscompile.sketching import sketches
    from crosscompile.target import target_of_tier

    targets = [target_of_tier(tier) for tier in request["tiers"]]
    found = []
    for done, scheme in enumerate(request["schemes"]):
        channel.progress("looking at the model", done, len(request["schemes"]))
        by_tier = sketches(request["config"], targets, scheme_for(*scheme))
        found.append({tier: sketch.as_json() for tier, sketch in by_tier.items()})
    return {"sketches": found}


def main() -> int:
    """Entry point. 0: a result was sent, 1: an error was sent."""
    channel = begin()
    try:
        channel.send(result=work(json.load(sys.stdin), channel))
    except CompileError as error:
        channel.send(error=type(error).__name__, text=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
