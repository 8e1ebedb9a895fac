"""A bundle on a machine, this one or a board, as far as comparing its steps needs to know it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from crosscompile.kinds import KINDS
from crosscompile.models.schemes import WEIGHT_KINDS
from crosscompile.target import TIERS, Tier
from edgellm.errors import BundleError, UsageError
from edgellm.profile_result import fetch
from edgellm.remote import Remote
from edgellm.runtime_program import InstalledModel
from edgellm.steps import Plan, read_plan

_CACHES = ("f32", "f16", "i8")


@dataclass(frozen=True)
class Parts:
    """The schemes of a bundle's parts, from its manifest."""

    body: str
    embedding: str
    head: str
    kv: str


@dataclass(frozen=True)
class Machine:
    """A bundle on a machine, and what its manifest and plan say. options: for edgellm-rt trace."""

    model: InstalledModel
    plan: Plan
    tier: Tier
    scheme: Parts
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.model.remote.name

    def packing(self, role: str) -> str | None:
        """Packing of the linear layers of a function that take quantized rows; None where rows stay float32."""
        scheme = self.scheme.body if role == "body" else self.scheme.head
        kind = WEIGHT_KINDS[scheme]
        return self.tier.packing(kind) if kind in KINDS else None


def open_machine(remote: Remote, name: str, path: str, options: tuple[str, ...] = ()) -> tuple[Machine, dict[str, Any]]:
    """The bundle at `path` of a machine, and its manifest. Raises RemoteError, or BundleError for what is malformed."""
    where = f"{remote.name}: manifest.json"
    try:
        manifest = json.loads(fetch(remote, f"{path}/manifest.json"))
        if manifest["target"].get("device") == "vulkan":
            raise UsageError(f"{remote.name}: {name} is for a GPU alone; compare it with --device vulkan")
        scheme, tier = manifest["scheme"], TIERS[manifest["target"]["tier"]]
        parts = Parts(*(str(scheme[key]) for key in ("body", "embedding", "head", "kv")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{where} names no scheme and tier that are known here; deploy the model again") from error
    if not {parts.body, parts.embedding, parts.head} <= WEIGHT_KINDS.keys() or parts.kv not in _CACHES:
        raise BundleError(f"{where} names a scheme that is not known here; deploy the model again")
    plan = read_plan(fetch(remote, f"{path}/plan.json"), f"{remote.name}: plan.json")
    return Machine(InstalledModel(remote, name, path), plan, tier, parts, options), manifest
