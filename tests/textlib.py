"""The runtime's tokenizer and template code as a shared library, called through ctypes.

Built once per source state with the machine's C compiler into a temporary directory.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["utf8", "status", "region", "json", "json_write", "tokenizer", "tokenizer_match", "tokenizer_normalize"]
SOURCES += ["tokenizer_encode", "tokenizer_decode", "tokenizer_unigram", "tokenizer_charsmap"]
BUFFER_SMALL, TEXT_INVALID = 42, 47


class TextError(Exception):
    """A status other than OK, with its name and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status, self.text = status, text


class Stream(ctypes.Structure):
    _fields_ = (
        ("window", ctypes.c_int32 * 64),
        ("n_window", ctypes.c_uint32),
        ("n_printed", ctypes.c_uint32),
        ("skip_special", ctypes.c_bool),
        ("started", ctypes.c_bool),
    )


def sources() -> list[Path]:
    folder = ROOT / "runtime_c" / "src"
    names = [name for name in SOURCES if (folder / f"{name}.c").exists()]
    names += sorted(path.stem for path in folder.glob("template*.c"))
    return [folder / f"{name}.c" for name in names]


@functools.cache
def library() -> ctypes.CDLL:
    """Compiles the sources with warnings as errors and loads them."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None, "these tests need a C compiler: install gcc or clang"
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources()))
    for header in sorted((ROOT / "runtime_c").glob("*/*.h")):
        digest.update(header.read_bytes())
    built = Path(tempfile.gettempdir()) / f"edgellm-text-{digest.hexdigest()[:16]}.so"
    if not built.exists():
        partial = Path(tempfile.mkdtemp()) / built.name
        command = [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        command += [f"-I{ROOT / 'runtime_c' / 'include'}", "-o", str(partial), *map(str, sources())]
        subprocess.run(command, check=True)
        shutil.move(partial, built)
    return ctypes.CDLL(str(built))


def aligned(data: bytes) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * (len(data) // 8 + 1)).from_buffer_copy(data + bytes(8 - len(data) % 8))


class Tokenizer:
    """ellm_tokenizer over the bytes of a tokenizer.bin."""

    def __init__(self, data: bytes) -> None:
        self.library = library()
        self.data = aligned(data)
        self.handle = ctypes.c_void_p()
        error = ctypes.create_string_buffer(512)
        status = self.library.ellm_tokenizer_open(
            self.data, ctypes.c_size_t(len(data)), ctypes.byref(self.handle), error
        )
        if status:
            raise TextError(status, error.value.decode())
        self.ids = (ctypes.c_int32 * 4096)()
        self.text = ctypes.create_string_buffer(65536)

    def close(self) -> None:
        self.library.ellm_tokenizer_close(self.handle)

    def encode(self, text: str | bytes, special: bool = False, parse_special: bool = True) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        count = ctypes.c_size_t()
        while True:
            status = self.library.ellm_tokenizer_encode(
                *(self.handle, data, ctypes.c_size_t(len(data)), ctypes.c_bool(special), ctypes.c_bool(parse_special)),
                *(self.ids, ctypes.c_size_t(len(self.ids)), ctypes.byref(count)),
            )
            if status != BUFFER_SMALL:
                break
            self.ids = (ctypes.c_int32 * count.value)()
        if status:
            raise TextError(status, "encode")
        return self.ids[: count.value]

    def decode(self, ids: list[int], skip_special: bool = False) -> str:
        array = (ctypes.c_int32 * len(ids))(*ids)
        count = ctypes.c_size_t()
        while True:
            status = self.library.ellm_tokenizer_decode(
                *(self.handle, array, ctypes.c_size_t(len(ids)), ctypes.c_bool(skip_special)),
                *(self.text, ctypes.c_size_t(len(self.text)), ctypes.byref(count)),
            )
            if status != BUFFER_SMALL:
                break
            self.text = ctypes.create_string_buffer(count.value)
        if status:
            raise TextError(status, "decode")
        return ctypes.string_at(self.text, count.value).decode()

    def stream(self, ids: list[int], skip_special: bool = False) -> list[str]:
        """The pieces that pushing one token after the other gives, then the flush."""
        state = Stream(skip_special=skip_special)
        count = ctypes.c_size_t()
        pieces = []
        for token in [*ids, None]:
            room = (self.text, ctypes.c_size_t(len(self.text)), ctypes.byref(count))
            if token is None:
                status = self.library.ellm_tokenizer_flush(self.handle, ctypes.byref(state), *room)
            else:
                status = self.library.ellm_tokenizer_push(
                    self.handle, ctypes.byref(state), ctypes.c_int32(token), *room
                )
            if status:
                raise TextError(status, "stream")
            pieces.append(ctypes.string_at(self.text, count.value).decode())
        return pieces


class Template:
    """ellm_template over the bytes of a chat.bin."""

    def __init__(self, data: bytes) -> None:
        self.library = library()
        self.data = aligned(data)
        self.handle = ctypes.c_void_p()
        error = ctypes.create_string_buffer(512)
        status = self.library.ellm_template_open(
            self.data, ctypes.c_size_t(len(data)), ctypes.byref(self.handle), error
        )
        if status:
            raise TextError(status, error.value.decode(errors="replace"))
        self.text = ctypes.create_string_buffer(65536)

    def close(self) -> None:
        self.library.ellm_template_close(self.handle)

    def render(self, messages: str, extra: str | None, prompt: bool) -> str:
        """messages and extra are JSON texts. Raises TextError with the template's own message."""
        error = ctypes.create_string_buffer(512)
        count = ctypes.c_size_t()
        while True:
            status = self.library.ellm_template_render(
                *(self.handle, messages.encode(), extra.encode() if extra is not None else None),
                *(ctypes.c_bool(prompt), self.text, ctypes.c_size_t(len(self.text)), ctypes.byref(count), error),
            )
            if status != BUFFER_SMALL:
                break
            self.text = ctypes.create_string_buffer(count.value)
        if status:
            raise TextError(status, error.value.decode(errors="replace"))
        return ctypes.string_at(self.text, count.value).decode()
