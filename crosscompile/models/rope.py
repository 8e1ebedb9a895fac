"""Rotary position embedding frequencies, as transformers computes them (modeling_rope_utils.ROPE_INIT_FUNCTIONS).

Configurations hold either `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosscompile.errors import ConfigError

DEFAULT_THETA = 10000.0
MOST = 1e30
"""Of any parameter: what is computed from it stays within float32."""
_OTHER_NAMES = {"su": "longrope"}
"""What the first configurations called a type."""


@dataclass(frozen=True, eq=False)
class Rope:
    """A rotary embedding.

    inv_freq   inverse frequencies, (rotated dimensions / 2,) float32; scaling: on sine and cosine
    long       the same for sessions of more than `original` positions; None where that makes no difference
    """

    inv_freq: np.ndarray
    scaling: float
    long: np.ndarray | None = None
    original: int = 0


def _number(parameters: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive finite number of the RoPE parameters; ConfigError names the key."""
    value = parameters.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(f"config.json: the RoPE parameters lack {key!r}, which rope_type {_kind(parameters)!r} needs")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < MOST:
        raise ConfigError(f"config.json: RoPE parameter {key!r} must be a positive number, not {value!r}")
    return float(value)


def _kind(parameters: Mapping[str, Any]) -> str:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    return "default" if kind is None else _OTHER_NAMES.get(str(kind), str(kind))


def _merged(config: Mapping[str, Any], kind: str | None = None, theta: float = DEFAULT_THETA) -> dict[str, Any]:
    """One flat dictionary with rope_type, rope_theta and the scaling's parameters. kind: of layers that differ."""
    merged: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"config.json: {key} must be an object, not {type(value).__name__}")
        if any(isinstance(entry, dict) for entry in value.values()):
            value = value.get(kind)
            if not isinstance(value, dict):
                raise ConfigError(f"config.json: {key} differs by layer type; this architecture has one for all layers")
        merged.update(value)
    if merged.get("rope_theta") is None:
        merged["rope_theta"] = config.get("rope_theta") or theta
    if merged.get("partial_rotary_factor") is None:
        merged["partial_rotary_factor"] = config.get("partial_rotary_factor")
    if _kind(merged) in ("llama3", "yarn", "longrope"):
        original = config.get("original_max_position_embeddings") or merged.get("original_max_position_embeddings")
        merged["original_max_position_embeddings"] = original or config.get("max_position_embeddings")
    return merged


def _powers(parameters: Mapping[str, Any], dim: int) -> np.ndarray:
    """theta ** (2 i / dim), (dim / 2,) float32: float32 exponent, correctly rounded power."""
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float64(_number(parameters, "rope_theta")) ** exponent.astype(np.float64)


def _inverse(parameters: Mapping[str, Any], dim: int) -> np.ndarray:
    frequencies: np.ndarray = np.float32(1) / _powers(parameters, dim).astype(np.float32)
    return frequencies


def _default(parameters: Mapping[str, Any], dim: int, limit: int) -> tuple[np.ndarray, float]:
    return _inverse(parameters, dim), 1.0


def _linear(parameters: Mapping[str, Any], dim: int, limit: int) -> tuple[np.ndarray, float]:
    return _inverse(parameters, dim) / np.float32(_number(parameters, "factor")), 1.0


def _dynamic(parameters: Mapping[str, Any], dim: int, limit: int) -> tuple[np.ndarray, float]:
    """NTK scaling starts beyond max_position_embeddings, which is where a bundle's context ends."""
    _number(parameters, "factor")
    return _inverse(parameters, dim), 1.0


def _llama3(parameters: Mapping[str, Any], dim: int, limit: int) -> tuple[np.ndarray, float]:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between interpolated."""
    one = np.float32(1)
    factor = np.float32(_number(parameters, "factor"))
    low, high = _number(parameters, "low_freq_factor"), _number(parameters, "high_freq_factor")
    original = _number(parameters, "original_max_position_embeddings", limit)
    if high <= low:
        raise ConfigError(f"config.json: RoPE high_freq_factor {high} must exceed low_freq_factor {low}")
    inverse = _inverse(parameters, dim)
    wavelength = np.float32(2 * math.pi) / inverse
    scaled = np.where(wavelength > np.float32(original / low), inverse / factor, inverse)
    smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (wavelength >= np.float32(original / high)) & (wavelength <= np.float32(original / low))
    blended = (one - smooth) * scaled / factor + smooth * scaled
    return np.where(between, blended, scaled).astype(np.float32), 1.0


def _yarn(parameters: Mapping[str, Any], dim: int, limit: int) -> tuple[np.ndarray, float]:
    """YaRN (arXiv 2309.00071): interpolated and extrapolated frequencies joined by a linear ramp."""
    original = _number(parameters, "original_max_position_embeddings", limit)
    factor = _number(parameters, "factor", limit / original)

    def magnitude(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    if parameters.get("attention_factor") is not None:
        attention = _number(parameters, "attention_factor")
    elif parameters.get("mscale") and parameters.get("mscale_all_dim"):
        over, under = _number(parameters, "mscale"), _number(parameters, "mscale_all_dim")
        attention = magnitude(factor, over) / magnitude(factor, under)
    else:
        attention = magnitude(factor)

    theta = _number(parameters, "rope_theta")
    if theta == 1.0:
        raise ConfigError("config.json: rope_theta 1.0 gives all RoPE dimensions one frequency; yarn needs another")

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(_number(parameters, "beta_fast", 32) if parameters.get("beta_fast") else 32)
    high = dimension(_number(parameters, "beta_slow", 1) if parameters.get("beta_slow") else 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    powers = _powers(parameters, dim).astype(np.float32)
    one = np.float32(1)
    keep = one - ramp.astype(np.float32)
    inverse = one / (np.float32(factor) * powers) * (one - keep) + one / powers * keep
    return inverse.astype(np.float32), attention


def _longrope(parameters: Mapping[str, Any], dim: int, limit: int) -> tuple[np.ndarray, float]:
    """LongRoPE (arXiv 2402.13753): each frequency has a divisor of its own; these are the ones for short texts."""
    original = _number(parameters, "original_max_position_embeddings", limit)
    factor = _number(parameters, "factor", limit / original)
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    if parameters.get("attention_factor") is not None:
        attention = _number(parameters, "attention_factor")
    return _divided(parameters, "short_factor", dim), attention


def _divided(parameters: Mapping[str, Any], key: str, dim: int) -> np.ndarray:
    """Frequencies, each divided by its factor."""
    factors = parameters.get(key)
    fine = isinstance(factors, list) and len(factors) == dim // 2
    if not fine or not all(isinstance(f, (int, float)) and not isinstance(f, bool) and f > 0 for f in factors or []):
        raise ConfigError(f"config.json: RoPE parameter {key!r} must be a list of {dim // 2} positive numbers")
    divided: np.ndarray = np.float32(1) / (np.array(factors, np.float32) * _powers(parameters, dim).astype(np.float32))
    return divided


def _factors(parameters: Mapping[str, Any], dim: int, limit: int) -> tuple[np.ndarray, float]:
    """A divisor for each frequency, as GGUF files store Llama 3's."""
    return _divided(parameters, "factors", dim), 1.0


ROPE_TYPES: dict[str, Callable[[Mapping[str, Any], int, int], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "factors": _factors,
}


def rope_parameters(config: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """Inverse frequencies, (head_dim / 2,) float32, and the factor on sine and cosine.

    config: the contents of config.json. Frequencies hold up to position max_position_embeddings - 1.
    Raises ConfigError for a RoPE type or a parameter that is not supported.
    """
    rope = rope_of(config)
    return rope.inv_freq, rope.scaling


def rope_of(
    config: Mapping[str, Any],
    kind: str | None = None,
    theta: float = DEFAULT_THETA,
    partial: bool = False,
    part: float = 1.0,
    override: Mapping[str, Any] | None = None,
) -> Rope:
    """The rotary embedding of a config.json, up to position max_position_embeddings - 1.

    kind: of the layers it is for, where layers differ. theta, part: where the configuration says nothing: the base, and
    the share of a head's dimensions that is rotated. partial: whether the architecture can rotate fewer than all.
    override: parameters that this architecture fixes. Raises ConfigError for what is not supported.
    """
    parameters = {**_merged(config, kind, theta), **(override or {})}
    name = _kind(parameters)
    if name not in ROPE_TYPES:
        raise ConfigError(f"config.json: rope_type {name!r} is not supported; supported are {', '.join(ROPE_TYPES)}")
    heads = config.get("num_attention_heads")
    dim = config.get("head_dim") or (config.get("hidden_size", 0) // heads if heads else 0)
    if not isinstance(dim, int) or dim < 2 or dim % 2:
        raise ConfigError(f"config.json: head_dim {dim!r} must be a positive even number for RoPE")
    share = parameters.get("partial_rotary_factor")
    share = part if share is None else share
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ConfigError(f"config.json: partial_rotary_factor must lie between 0 and 1, not {share!r}")
    if share != 1 and not partial:
        raise ConfigError(f"config.json: partial_rotary_factor {share!r} is not supported here; only 1.0 is")
    rotated = int(dim * share)
    if rotated < 2 or rotated % 2:
        raise ConfigError(f"config.json: {rotated} of {dim} dimensions of a head cannot be rotated in pairs")
    limit = config.get("max_position_embeddings") or 2048
    frequencies, attention = ROPE_TYPES[name](parameters, rotated, limit)
    made = Rope(frequencies.astype(np.float32), float(attention))
    if name != "longrope":
        return made
    original = int(_number(parameters, "original_max_position_embeddings", limit))
    return Rope(made.inv_freq, made.scaling, _divided(parameters, "long_factor", rotated), original)
