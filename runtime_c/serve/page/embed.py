"""Makes the C header that holds the chat page: `python embed.py chat.html > page_data.h`.

The page goes in without its indentation, the lines that are nothing but comments and the blanks in its style, and
compressed. Its policy is made here, because it names the hashes of the one style sheet and the one script (Content
Security Policy Level 3): what is not in this file does not run. The same page and the same zlib give the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import sys
from pathlib import Path

_COMMENT = re.compile(r"(?://.*|/\*.*\*/|<!--.*-->)$")
_STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)
_BLANKS = re.compile(r"\s*([{};,])\s*")
_PER_LINE = 32


def shrink(text: str) -> str:
    """The page without indentation, empty lines and lines of comments, its style without blanks around punctuation.

    Nothing in it may depend on those.
    """
    lines = (line.strip() for line in text.splitlines())
    text = "\n".join(line for line in lines if line and not _COMMENT.match(line)) + "\n"
    return _STYLE.sub(lambda style: _BLANKS.sub(r"\1", style[0]).replace(": ", ":").replace(";}", "}"), text)


def policy(page: str) -> str:
    """The Content-Security-Policy: the page's own style and script, requests to its own server, and nothing else."""
    hashes = {}
    for name in ("style", "script"):
        (content,) = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        hashes[name] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def header(page: str) -> str:
    data = gzip.compress(page.encode(), 9, mtime=0)
    data = data[:9] + b"\xff" + data[10:]  # the system it was made on: unknown
    rows = [data[at : at + _PER_LINE] for at in range(0, len(data), _PER_LINE)]
    numbers = "\n".join("    " + " ".join(f"{byte}," for byte in row) for row in rows)
    return (
        "/* Made by serve/page/embed.py; not to be edited. */\n"
        f'#define PAGE_POLICY "{policy(page)}"\n'
        f"static const unsigned char page_gzip[] = {{\n{numbers}\n}};\n"
    )


if __name__ == "__main__":
    sys.stdout.write(header(shrink(Path(sys.argv[1]).read_text(encoding="utf-8"))))
