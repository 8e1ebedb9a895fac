"""The table of schemes: how the weights of a model and its cache are stored. Needs no TVM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from crosscompile.errors import ConfigError
from crosscompile.kinds import KINDS


@dataclass(frozen=True)
class Scheme:
    """How weights and cache are stored: f32, f16 or KINDa8 for body, embedding and head; a KV type for kv.

    tensors: parameters that differ, by name.
    """

    name: str
    body: str
    embedding: str
    head: str
    kv: str
    tensors: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str, part: str) -> str:
        """The scheme of a parameter of a part: "body", "embedding" or "head"."""
        found: str = self.tensors.get(name) or getattr(self, part)
        return found

    def as_dict(self) -> dict[str, Any]:
        """What a manifest says of it."""
        made = asdict(self)
        return made if self.tensors else {key: value for key, value in made.items() if key != "tensors"}


SCHEMES: dict[str, Scheme] = {
    "w4a8": Scheme("w4a8", "w4a8", "w8a8", "w8a8", "f16"),
    **{f"{kind}a8": Scheme(f"{kind}a8", f"{kind}a8", "w8a8", "w8a8", "f16") for kind in KINDS},
    "f16": Scheme("f16", "f16", "f16", "f16", "f16"),
    "f32": Scheme("f32", "f32", "f32", "f32", "f32"),
}
"""The first is what nothing else is said for."""
KV_TYPES = ("f16", "i8", "f32")
WEIGHT_KINDS = {"f32": "f32", "f16": "f16", **{f"{kind}a8": kind for kind in KINDS}}
"""The stored kind of weights under each scheme."""


def scheme_for(
    name: str,
    embedding: str | None = None,
    head: str | None = None,
    kv: str | None = None,
    tensors: Iterable[tuple[str, str]] = (),
) -> Scheme:
    """A scheme by name, with embedding, head and cache chosen separately where given, and tensors that differ.

    ConfigError on unknown names.
    """
    own = dict(tensors)
    for what, value, known in (
        ("scheme", name, SCHEMES),
        ("embedding scheme", embedding or name, SCHEMES),
        ("head scheme", head or name, SCHEMES),
        ("kv type", kv or "f16", KV_TYPES),
        *((f"scheme of {tensor}", value, SCHEMES) for tensor, value in own.items()),
    ):
        if value not in known:
            raise ConfigError(f"{what} {value!r} does not exist; there are {', '.join(known)}")
    base = SCHEMES[name]
    return Scheme(name, base.body, embedding or base.embedding, head or base.head, kv or base.kv, own)
