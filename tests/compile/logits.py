"""Logits of a bundle, through the C library in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np


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


class Model:
    """A bundle with one context, of two sessions. library: libedgellm.so, of runtime_c/Makefile."""

    def __init__(self, library: Path, bundle: Path, vocab: int = 1536) -> None:
        self.c = ctypes.CDLL(str(library))
        self.model, self.context, error = ctypes.c_void_p(), ctypes.c_void_p(), _Error()
        status = self.c.ellm_model_open(str(bundle).encode(), ctypes.byref(self.model), ctypes.byref(error))
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
            rows = (_Row * n)(*[_Row(int(tokens[at + i]), at + i, 0, True) for i in range(n)])
            out = np.zeros((n, self.vocab), np.float32)
            pointer = out.ctypes.data_as(ctypes.c_void_p)
            assert self.c.ellm_context_eval(self.context, rows, ctypes.c_size_t(n), pointer) == 0
            parts.append(out)
            at += n
        return np.concatenate(parts)

    def mixed(self, tokens: np.ndarray) -> np.ndarray:
        """(tokens, vocab) of two new sessions whose rows take turns in one step."""
        for slot in range(2):
            assert self.c.ellm_session_truncate(self.context, slot, 0) == 0
        n = len(tokens)
        rows = (_Row * n)(*[_Row(int(token), i // 2, i % 2, True) for i, token in enumerate(tokens)])
        out = np.zeros((n, self.vocab), np.float32)
        pointer = out.ctypes.data_as(ctypes.c_void_p)
        assert self.c.ellm_context_eval(self.context, rows, ctypes.c_size_t(n), pointer) == 0
        return out

    def close(self) -> None:
        self.c.ellm_context_close(self.context)
        self.c.ellm_model_close(self.model)


def compare(a: Model, b: Model, lengths: Sequence[int]) -> float:
    """The largest difference between two models' logits of random tokens, relative to the largest logit."""
    tokens = np.random.default_rng(sum(lengths)).integers(3, a.vocab - 4, sum(lengths))
    first, second = a.logits(tokens, lengths), b.logits(tokens, lengths)
    return float(np.abs(first - second).max() / np.abs(first).max())
