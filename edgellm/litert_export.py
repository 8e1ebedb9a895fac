"""Exports a checkpoint for LiteRT-LM: `PYTHON litert_export.py CHECKPOINT FOLDER POSITIONS`, with the peer's Python.

Default recipe: weights in int8 with one scale per channel, activations quantized as they come, KV cache in float32.
"""

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec

MISSING = ("tensorflow", "tensorflow.lite", "tensorflow.lite.python")
"""Where litert-torch 0.10.0 looks for a module, for an image model, that ai-edge-litert has too; it does not require
TensorFlow, and nothing here needs it."""


def main() -> int:
    """Entry point."""
    checkpoint, folder, positions = sys.argv[1:]
    os.environ["HF_HUB_OFFLINE"] = "1"
    from ai_edge_litert import schema_py_generated

    sys.modules.update({name: module_from_spec(ModuleSpec(name, None)) for name in MISSING})
    sys.modules[MISSING[-1]].schema_py_generated = schema_py_generated  # type: ignore[attr-defined]
    try:
        from litert_torch.generative.export_hf.export import export
    finally:
        for name in MISSING:
            del sys.modules[name]
    export(checkpoint, folder, cache_length=int(positions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
