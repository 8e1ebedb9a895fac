"""Caches of tests' own, without finished bundles, that do not compile the same kernels and programs again."""

from __future__ import annotations

from pathlib import Path

from edgellm import cache

_BY_CONTENT = ("kernels", "runtime")


def own_cache(folder: Path) -> str:
    """Makes `folder` a cache that shares with everybody's what is kept by content; what EDGELLM_CACHE is to be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _BY_CONTENT:
        shared = cache.root() / name
        shared.mkdir(exist_ok=True)
        (folder / name).symlink_to(shared.resolve())
    return str(folder)
