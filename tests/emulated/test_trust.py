"""Signatures and encryption on the emulated Raspberry Pi 5: pinned, refused, accepted, by the commands a user types."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgellm import bundle as bundles
from edgellm import signing
from edgellm.board_session import BoardSession, ask_once
from edgellm.bundle import Bundle
from edgellm.cli import main
from edgellm.errors import RuntimeFailedError
from edgellm.ssh import SshRemote

MODEL = str(Path(__file__).resolve().parents[2] / "examples/voice_assistant/model")
BOARD = "virtual-rpi5"
ROOT = "/home/pi/.edgellm"
NAME = "trusted"
PROMPT = "turn on the kitchen light"


@dataclass
class Said:
    code: int
    out: str
    err: str


def edgellm(*argv: str) -> Said:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(list(argv))
    return Said(code, out.getvalue(), err.getvalue())


def deploy(*argv: str) -> Said:
    return edgellm("deploy", *argv, "--board", BOARD, "--name", NAME, "--json")


def answer() -> Said:
    return edgellm("run", "--board", BOARD, "--model", NAME, "-p", PROMPT, "--temperature", "0", "--json")


def done(said: Said) -> dict[str, object]:
    assert said.code == 0, said.err
    return dict(json.loads(said.out))


def refused(said: Said, what: str) -> None:
    assert said.code == 1
    assert what in said.err
    assert said.err.count("\n") == 1


@pytest.fixture(scope="module")
def remote(start_board, tmp_path_factory) -> Iterator[SshRemote]:
    """The board, without keys; what is remembered and kept on this side lies in a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp("home")))
        with SshRemote(start_board(BOARD), BOARD) as connected:
            connected.script('rm -f "$1/trusted_keys" "$1/weights.key"', ROOT)
            yield connected
            connected.script('rm -f "$1/trusted_keys" "$1/weights.key"', ROOT)


@pytest.fixture(scope="module")
def bundle(remote, tmp_path_factory) -> Bundle:
    """The demo model for this board, unsigned, and two keys."""
    for name in ("home", "other"):
        assert edgellm("keygen", name).code == 0
    folder = tmp_path_factory.mktemp("bundle") / "b"
    done(edgellm("compile", MODEL, "--board", BOARD, "-o", str(folder), "--json"))
    return bundles.read(folder)


def current(remote: SshRemote) -> str:
    return posixpath.join(
        ROOT, "models", NAME, remote.script('readlink "$1/models/$2/current"', ROOT, NAME).text.strip()
    )


def test_nothing_is_pinned_until_somebody_asks(remote, bundle):
    done(deploy(str(bundle.path)))
    assert done(edgellm("trust", "--board", BOARD, "--json"))["pinned"] == []
    assert done(answer())["text"]
    done(deploy(str(bundle.path), "--sign", "home"))  # a signature alone pins nothing
    assert done(edgellm("trust", "--board", BOARD, "--json"))["pinned"] == []


def test_the_first_deployment_that_requires_a_signature_pins_its_key(remote, bundle):
    refused(deploy(str(bundle.path), "--require-signature"), "is not signed; sign it with --sign KEY")
    before = {path: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()}
    done(deploy(str(bundle.path), "--sign", "home", "--require-signature"))
    assert {path: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()} == before
    key = signing.load_public("home")
    assert remote.script('cat "$1/trusted_keys"', ROOT).text == f"ed25519 {key.hex}\n"
    assert done(edgellm("trust", "--board", BOARD, "--json"))["pinned"] == [{"key": key.hex, "name": ""}]
    again = done(deploy(str(bundle.path), "--sign", "home"))
    assert (again["unchanged"], again["sent_bytes"]) == (True, 0)
    assert done(answer())["text"]


def test_unsigned_and_foreign_bundles_are_refused_before_the_first_byte(remote, bundle):
    refused(deploy(str(bundle.path)), "only takes bundles by its pinned keys")
    refused(deploy(str(bundle.path), "--sign", "other"), "is signed by key")
    refused(deploy(str(bundle.path), "--sign", "home", "--signed-by", "other"), "is signed by key")


def promoted(remote: SshRemote, folder: Path, manifest: bytes, signature: str | None) -> str:
    """What the board says to a promotion that no well-meaning host asks for; the status' name."""
    request = ["promote", NAME, hashlib.sha256(manifest).hexdigest()]
    with BoardSession(remote, "/home/pi") as session:
        for data in (manifest, (signature or "").encode()):
            digest = hashlib.sha256(data).hexdigest()
            (folder / digest).write_bytes(data)
            session.send(folder / digest, digest, 0, False, None)
        session.collect()
    if signature is not None:
        request.append(f"manifest.sig={hashlib.sha256(signature.encode()).hexdigest()}")
    with pytest.raises(RuntimeFailedError) as caught:
        ask_once(remote, "/home/pi", *request)
    return caught.value.name


def test_the_board_itself_refuses_whatever_the_host_thinks(remote, bundle, tmp_path):
    manifest = (bundle.path / "manifest.json").read_bytes()
    changed = (
        manifest.replace(b'"top_k"', b'"top_j"')
        if b'"top_k"' in manifest
        else manifest.replace(b'"name"', b'"nane"', 1)
    )
    home, other = (signing.load_private(name) for name in ("home", "other"))
    before = current(remote)
    assert promoted(remote, tmp_path, changed, None) == "SIGNATURE_MISSING"
    assert promoted(remote, tmp_path, changed, other.line(changed)) == "SIGNATURE_UNTRUSTED"
    assert promoted(remote, tmp_path, changed, home.line(manifest)) == "SIGNATURE_INVALID"
    # The version in use, with a signature by somebody else: it must not lose the one it has.
    assert promoted(remote, tmp_path, manifest, other.line(manifest)) == "SIGNATURE_UNTRUSTED"
    assert current(remote) == before
    assert done(answer())["text"]


FLIP = '''cd "$1"; cp -p "$2" "$2.kept"
printf X | dd of="$2.kept" bs=1 seek="$3" conv=notrunc 2>/dev/null
mv "$2.kept" "$2"'''


@pytest.mark.parametrize("name", ["plan.json", "kernels.so", "tokenizer.bin", "chat.bin", "manifest.json"])
def test_a_tampered_file_is_refused_at_open_and_mended_by_the_next_deployment(remote, bundle, name):
    remote.script('chmod -R u+w "$1"', current(remote))
    remote.script(FLIP, current(remote), name, "100")
    refused(answer(), "BUNDLE_CORRUPT")
    digest = 'cd "$1"; sha256sum manifest.json >manifest.sha256.new; mv manifest.sha256.new manifest.sha256'
    if name == "manifest.json":  # the digest made to match: only the signature can tell
        remote.script(digest, current(remote))
        refused(answer(), "SIGNATURE_INVALID")
    done(deploy(str(bundle.path), "--sign", "home"))
    assert done(answer())["text"]


def test_a_tampered_weight_shard_is_refused(remote, bundle):
    shard = next(file.path for file in bundle.files if file.path.endswith(".safetensors"))
    remote.script(FLIP, current(remote), shard, "70000")
    refused(answer(), "BUNDLE_CORRUPT")
    done(deploy(str(bundle.path), "--sign", "home"))
    assert done(answer())["text"]


def test_unpinning_is_said_aloud(remote, bundle):
    key = signing.load_public("home")
    assert edgellm("trust", "--board", BOARD, "--unpin", "0000").code == 1
    assert done(edgellm("trust", "--board", BOARD, "--pin", "other", "--json"))["pinned"] == [
        {"key": key.hex, "name": ""},
        {"key": signing.load_public("other").hex, "name": "other"},
    ]
    done(deploy(str(bundle.path), "--sign", "other"))
    assert "takes any bundle" in edgellm("trust", "--board", BOARD, "--unpin", "all").out
    done(deploy(str(bundle.path)))


def test_encrypted_weights_answer_the_same(remote, bundle):
    plain = done(answer())
    first = done(deploy(str(bundle.path), "--encrypt"))
    assert first["sent_bytes"]
    heads = remote.script(
        'cd "$1/weights"; for f in *.safetensors; do head -c 8 "$f"; echo; done', current(remote)
    ).text
    assert set(heads.split()) == {"ELLMENC1"}
    assert remote.script('stat -c %a "$1/weights.key"', ROOT).text.strip() == "600"
    secret = done(answer())
    assert (secret["ids"], secret["text"]) == (plain["ids"], plain["text"])
    again = done(deploy(str(bundle.path), "--encrypt"))
    assert (again["unchanged"], again["sent_bytes"]) == (True, 0)
    # Without the key, and with another one.
    remote.script('mv "$1/weights.key" "$1/kept"', ROOT)
    refused(answer(), "KEY_MISSING")
    remote.script('head -c 32 /dev/zero >"$1/weights.key"; chmod 600 "$1/weights.key"', ROOT)
    refused(answer(), "DECRYPTION_FAILED")
    refused(deploy(str(bundle.path), "--encrypt"), "has another key for its weights")
    remote.script('mv "$1/kept" "$1/weights.key"', ROOT)
    shard = next(file.path for file in bundle.files if file.path.endswith(".safetensors"))
    remote.script('chmod -R u+w "$1"', current(remote))
    remote.script(FLIP, current(remote), shard, "50000")
    refused(answer(), "DECRYPTION_FAILED")
    done(deploy(str(bundle.path), "--encrypt"))
    assert done(answer())["ids"] == plain["ids"]
    # Back to plain weights, and the signature of the publisher holds for both.
    done(deploy(str(bundle.path), "--sign", "home", "--require-signature", "--encrypt"))
    assert done(answer())["ids"] == plain["ids"]
    done(deploy(str(bundle.path), "--sign", "home"))
    assert "ELLMENC1" not in remote.script('head -c 8 "$1"', f"{current(remote)}/{shard}").stdout.decode("latin-1")
    assert done(answer())["ids"] == plain["ids"]


def test_a_prebuilt_model_is_deployed_from_one_file(remote, bundle, tmp_path):
    file = tmp_path / "model.edgellm"
    done(edgellm("export", str(bundle.path), "-o", str(file), "--sign", "home", "--json"))
    refused(deploy(str(file), "--signed-by", "other"), "is signed by key")
    done(deploy(str(file), "--signed-by", "home"))
    assert done(answer())["text"]
    edgellm("trust", "--board", BOARD, "--unpin", "all")
