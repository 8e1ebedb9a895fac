"""English prose found on this machine: documentation, manual pages and licences that its packages brought.

    python prose.py --output DIRECTORY        # train.txt and heldout.jsonl

The same files give the same text. A paragraph is taken once, wherever it stands first, and every twentieth document is
held out as a whole, so that none of its paragraphs is in the text for training.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = (
    "/usr/share/doc", "/usr/share/man", "/usr/share/info", "/usr/share/common-licenses", "/usr/share/perl",
    "/usr/share/vim", "/usr/share/cmake*/Help",
)  # fmt: skip
"""Where packages put what people read; site-packages and Python's own library come on top."""
NAMES = re.compile(
    r"(?i)(readme|news|copyright|licen[cs]e|copying|faq|howto|notice|authors|todo|contributing|metadata|artistic.*|"
    r"(l|a)?gpl.*|bsd|apache.*)([._-].*)?|.*\.(md|rst|txt|pod|texi|info(-\d+)?|[1-8][a-z]*)"
)
"""File names, without .gz, that promise prose."""
TOO_LARGE_BYTES = 3 << 20
HELD_OUT = 20
"""One document in so many."""
LETTERS = re.compile(r"[A-Za-z ,.;:'\"()\n-]")
FREQUENT = frozenset("the of to and a in is that for it be as with this on by not or are an can if from you".split())
SHORTEST, LONGEST = 100, 2400
"""Characters of a paragraph."""


@dataclass(frozen=True)
class Document:
    """The paragraphs of a file that no earlier file had."""

    file: Path
    paragraphs: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        return digest("\n\n".join(self.paragraphs)) % HELD_OUT == 0


def digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def files() -> Iterator[Path]:
    """Every candidate, in the order of its path."""
    paths = sysconfig.get_paths()
    roots = [*FOLDERS, paths["purelib"], paths["stdlib"]]
    found: set[Path] = set()
    for root in roots:
        base = Path(root)
        for folder in base.parent.glob(base.name) if "*" not in str(base.parent) else base.parent.parent.glob(
            f"{base.parent.name}/{base.name}"
        ):  # fmt: skip
            found.update(file for file in folder.rglob("*") if NAMES.fullmatch(file.name.removesuffix(".gz")))
    for file in sorted(found):
        if file.is_file() and not file.is_symlink() and file.stat().st_size < TOO_LARGE_BYTES:
            yield file


def read(file: Path) -> str:
    """The text of a file, without the markup of manual pages; nothing where it is no text."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return ""
    return from_roff(text) if re.search(r"^\.(TH|Dd|SH)\b", text, re.MULTILINE) else text


def from_roff(text: str) -> str:
    """A manual page as paragraphs: requests that only change a font leave their words, all others begin a new one."""
    lines = []
    for line in text.splitlines():
        if line.startswith((".B ", ".I ", ".BR ", ".IR ", ".BI ", ".Nm ", ".Ar ", ".Xr ")):
            words = line.split(" ", 1)[1].replace('"', "")
            lines.append(words.replace(" ", "") if line[2] in "RI" else words)
        else:
            lines.append("" if line.startswith((".", "'")) else line)
    text = re.sub(r"\\f(\[.*?\]|\(..|.)|\\s[+-]?\d|\\&|\\c|\\/|\\,", "", "\n".join(lines))
    text = re.sub(r"\\(-|\(hy|\(en|\(em|\[en\]|\[em\])", "-", text)
    text = re.sub(r"\\(\(aq|\(cq|\[cq\]|')", "'", text)
    return re.sub(r"\\(\*\(?[A-Za-z]{1,2}|\[.*?\]|\(..|e|.)", "", text)


def is_prose(text: str) -> bool:
    """Whether a paragraph is a few English sentences, not a table, a list or code."""
    if not SHORTEST <= len(text) <= LONGEST or text[-1] not in '.:!?)"' or "  " in text:
        return False
    words = re.findall(r"[A-Za-z']+", text.lower())
    frequent = sum(word in FREQUENT for word in words)
    return len(LETTERS.findall(text)) > 0.94 * len(text) and frequent > 0.22 * len(words)


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of prose, each on one line, quotes and comment marks at the beginning of lines removed."""
    for part in re.split(r"\n[ \t#*>|%/;]*\n", text.replace("\r\n", "\n")):
        lines = [re.sub(r"^[ \t#*>|%/;]+", "", line).strip() for line in part.split("\n")]
        joined = re.sub(r"[ \t]+", " ", " ".join(lines)).strip()
        joined = re.sub(r"[`*_]{1,2}(\S[^`*_]*?)[`*_]{1,2}", r"\1", joined)
        if is_prose(joined):
            yield joined


def documents() -> Iterator[Document]:
    """Documents that have something new, in the order of their paths."""
    seen: set[int] = set()
    for file in files():
        new = []
        for paragraph in paragraphs(read(file)):
            key = digest(re.sub(r"[^a-z]+", "", paragraph.lower()))
            if key not in seen:
                seen.add(key)
                new.append(paragraph)
        if sum(map(len, new)) >= 2 * SHORTEST:
            yield Document(file, tuple(new))


def write(output: Path) -> None:
    """Writes train.txt, documents apart by a form feed, and heldout.jsonl, {"text": …} for each."""
    output.mkdir(parents=True, exist_ok=True)
    train, held = [], []
    for document in documents():
        (held if document.held_out else train).append("\n\n".join(document.paragraphs))
    (output / "train.txt").write_text("\f".join(train), encoding="utf-8")
    (output / "heldout.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held))
    print(f"{len(train)} documents of {sum(map(len, train)) / 1e6:.1f} MB to train on, "
          f"{len(held)} of {sum(map(len, held)) / 1e6:.1f} MB held out")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Gather English prose from this machine.")
    parser.add_argument("--output", type=Path, required=True, help="directory of train.txt and heldout.jsonl")
    write(parser.parse_args().output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
