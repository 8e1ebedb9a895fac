"""Logits of a bundle, through the C library in this process."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.runtime_make import build


class _Row(ctypes.Structure):
    _fields_ = [
        ("token", ctypes.c_int32),
        ("position", ctypes.c_int32),
        ("slot", ctypes.c_int32),
        ("wants_logits", ctypes.c_bool),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("n_sessions", "context_length", "prefill", "decode")),
        ("real_gpu", ctypes.c_bool),
    ]


class _Error(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char * 512)]


CPU_FIRST, CPU, GPU = 0, 2, 3
"""Of ellm_device: the last two take no other."""

PREFIX = -1
"""ELLM_PREFIX: the session that holds what the bundle ships."""


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(build("libedgellm.so")))


class Model:
    """A bundle with one context, of two sessions."""

    def __init__(self, bundle: Path, vocab: int = 1536, device: int = CPU_FIRST) -> None:
        self.c = _library()
        self.model, self.context, error = ctypes.c_void_p(), ctypes.c_void_p(), _Error()
        any_ = (ctypes.c_char_p * 2)()  # ellm_trust: bundles without a signature, and without a key
        status = self.c.ellm_model_open_on(
            str(bundle).encode(), any_, device, ctypes.byref(self.model), ctypes.byref(error)
        )
        assert status == 0, error.text
        options = _Options(2, 0, 0, 0, False)
        status = self.c.ellm_context_open(
            self.model, ctypes.byref(options), ctypes.byref(self.context), ctypes.byref(error)
        )
        assert status == 0, error.text
        self.vocab = vocab

    def logits(self, tokens: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        """(tokens, vocab) of a new session, fed in pieces of these lengths."""
        assert self.c.ellm_session_truncate(self.context, 0, 0) == 0
        parts, at = [], 0
        for n in lengths:
            parts.append(self.rows(tokens[at : at + n], at, 0))
            at += n
        return np.concatenate(parts)

    def rows(self, tokens: np.ndarray, first: int, slot: int) -> np.ndarray:
        """(tokens, vocab) of what follows in a session, at positions from `first` on."""
        return self._eval([_Row(int(token), first + i, slot, True) for i, token in enumerate(tokens)])

    def _eval(self, rows: list[_Row]) -> np.ndarray:
        out = np.zeros((len(rows), self.vocab), np.float32)
        pointer, n = out.ctypes.data_as(ctypes.c_void_p), len(rows)
        assert self.c.ellm_context_eval(self.context, (_Row * n)(*rows), ctypes.c_size_t(n), pointer) == 0
        return out

    def share(self, source: int, to: int, length: int) -> int:
        """The status of ellm_session_share."""
        status: int = self.c.ellm_session_share(self.context, source, to, length)
        return status

    def save(self, slot: int, tokens: Sequence[int], file: Path) -> tuple[int, str]:
        """The status of ellm_session_save, and what it says."""
        error, ids = _Error(), (ctypes.c_int32 * len(tokens))(*tokens)
        name = str(file).encode()
        status = self.c.ellm_session_save(self.context, slot, ids, name, None, ctypes.c_size_t(0), ctypes.byref(error))
        return status, error.text.decode()

    def restore(self, slot: int, file: Path) -> int:
        """How many tokens of a saved session are the session's now; 0 where their states are not for this model."""
        saved, ids, error = ctypes.c_void_p(), ctypes.c_void_p(), _Error()
        name = str(file).encode()
        status = self.c.ellm_saved_open(self.model, name, ctypes.byref(saved), ctypes.byref(error))
        assert status == 0, error.text
        count = self.c.ellm_saved_tokens
        count.restype = ctypes.c_size_t
        n = int(count(saved, ctypes.byref(ids)))
        assert (self.c.ellm_session_restore(self.context, slot, saved) == 0) == (n > 0)
        self.c.ellm_saved_close(saved)
        return n

    def mixed(self, tokens: np.ndarray) -> np.ndarray:
        """(tokens, vocab) of two new sessions whose rows take turns in one step."""
        for slot in range(2):
            assert self.c.ellm_session_truncate(self.context, slot, 0) == 0
        return self._eval([_Row(int(token), i // 2, i % 2, True) for i, token in enumerate(tokens)])

    def close(self) -> None:
        self.c.ellm_context_close(self.context)
        self.c.ellm_model_close(self.model)


def compare(a: Model, b: Model, lengths: Sequence[int]) -> float:
    """The largest difference between two models' logits of random tokens, relative to the largest logit."""
    tokens = np.random.default_rng(sum(lengths)).integers(3, a.vocab - 4, sum(lengths))
    first, second = a.logits(tokens, lengths), b.logits(tokens, lengths)
    return float(np.abs(first - second).max() / np.abs(first).max())
