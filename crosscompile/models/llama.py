"""Llama with another feed-forward, for architectures that installed packages add (crosscompile/EXTENDING.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.relax.frontend import nn

from crosscompile.models.architecture import Network
from crosscompile.models.decoder import network
from crosscompile.models.families.llama import base


def build(
    config: Mapping[str, Any], kv: str, feed_forward: type[nn.Module] | None = None, activation: str = "silu"
) -> Network:
    """The network of a Llama-family config.json.

    kv: dtype of the cache. feed_forward: the module of each layer's MLP, made from a Design, whose `hidden` and
    `intermediate` it needs, and activation, the hidden_act it stands for. ConfigError names what does not fit.
    """
    return network(base(config, activation=activation), kv, feed_forward)
