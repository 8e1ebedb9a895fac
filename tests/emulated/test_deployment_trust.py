"""Signatures and encryption on their way to a fake board; store, slots and promotion are the real program's."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edgellm import encryption, signing, trust
from edgellm.board_session import BoardSession, ask_once
from edgellm.bundle import Bundle
from edgellm.deployment import Deployment, deploy
from edgellm.errors import RuntimeFailedError, TrustError
from edgellm.fake import FakeRemote
from edgellm.runtime_program import find_model
from edgellm.signing import SigningKey
from edgellm.trust import Demand
from tests.standin import make_bundle, real_program

KEY = bytes(range(32))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: real flushes to a disk would make these tests slow."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRemote:
    real_program()  # into the usual cache, for all tests
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "home of 'pi'").mkdir()
    return FakeRemote(tmp_path / "home of 'pi'")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def key(name: str) -> SigningKey:
    path = signing.key_path(name)
    if not path.exists():
        signing.generate(path, name)
    return signing.load_private(name)


def deployed(
    board: FakeRemote, bundle: Bundle, name: str | None = None, secret: bytes | None = None, **how: bool
) -> Deployment:
    """Deploys the bundle, signed by the key called `name` and encrypted with `secret`."""
    with ExitStack() as stack:
        if name is not None:
            line = key(name).line((bundle.path / "manifest.json").read_bytes())
            bundle = stack.enter_context(encryption.view(bundle, line))
        if secret is not None:
            bundle = stack.enter_context(encryption.encrypted(bundle, secret))
        return deploy(bundle, board, demand=Demand(**how), secret=secret)


def root(board: FakeRemote) -> Path:
    return board.home / ".edgellm"


def current(board: FakeRemote) -> Path:
    return root(board) / "models/tiny/current"


def test_pinned_refused_accepted(board: FakeRemote, bundle: Bundle, tmp_path: Path) -> None:
    deployed(board, bundle)
    with pytest.raises(TrustError, match="is not signed; sign it with --sign KEY"):
        deployed(board, bundle, signed=True)
    assert not (root(board) / "trusted_keys").exists()
    done = deployed(board, bundle, "me", signed=True)
    assert (root(board) / "trusted_keys").read_text() == key("me").public.line.replace(" me", "")
    assert (current(board) / "manifest.sig").is_file()
    assert done.kept_bytes >= bundle.n_bytes
    assert deployed(board, bundle, "me").unchanged
    other = make_bundle(tmp_path / "other", {"plan.json": b"{ }"})
    board.sent_bytes = 0
    for name in (None, "you"):
        with pytest.raises(TrustError, match="only takes bundles by its pinned keys"):
            deployed(board, other, name)
    assert board.sent_bytes == 0
    deployed(board, other, "me")
    # What is called from now on is the program outside the slots.
    assert find_model(board, "tiny").argv("info")[0] == str(root(board) / "edgellm-rt")
    trust.pin(board, str(board.home), [])
    deployed(board, bundle)
    assert find_model(board, "tiny").argv("info")[0].endswith("current/edgellm-rt")


def test_a_deployment_that_fails_pins_nothing(board: FakeRemote, bundle: Bundle, tmp_path: Path) -> None:
    deployed(board, bundle)
    wrong = make_bundle(tmp_path / "wrong", {"plan.json": b'{"golden fails": 1}'})
    with pytest.raises(RuntimeFailedError, match="golden prompt 0"):
        deployed(board, wrong, "me", signed=True)
    assert not (root(board) / "trusted_keys").exists()
    assert os.readlink(current(board)) == bundle.sha256[:16]


def test_a_damaged_file_of_keys_is_no_open_door(board: FakeRemote, bundle: Bundle) -> None:
    deployed(board, bundle, "me", signed=True)
    for text in ("", "nonsense\n", "ed25519 12 me\n"):
        (root(board) / "trusted_keys").write_text(text)
        with pytest.raises(TrustError):
            deployed(board, bundle, "me")


def promote(board: FakeRemote, folder: Path, manifest: bytes, signature: str | None) -> str:
    """The status that the board answers with to whatever is put into its store."""
    request = ["promote", "tiny", hashlib.sha256(manifest).hexdigest()]
    with BoardSession(board, str(board.home)) as session:
        for data in (manifest, (signature or "").encode()):
            digest = hashlib.sha256(data).hexdigest()
            (folder / digest).write_bytes(data)
            session.send(folder / digest, digest, 0, False, None)
        session.collect()
    if signature is not None:
        request.append(f"manifest.sig={hashlib.sha256(signature.encode()).hexdigest()}")
    with pytest.raises(RuntimeFailedError) as caught:
        ask_once(board, str(board.home), *request)
    return caught.value.name


def test_the_board_judges_by_itself(board: FakeRemote, bundle: Bundle, tmp_path: Path) -> None:
    deployed(board, bundle, "me", signed=True)
    manifest = (bundle.path / "manifest.json").read_bytes()
    changed = manifest.replace(b'"golden"', b'"ungolden"')
    before = {path.name: path.read_bytes() for path in current(board).iterdir() if path.is_file()}
    assert promote(board, tmp_path, changed, None) == "SIGNATURE_MISSING"
    assert promote(board, tmp_path, changed, key("you").line(changed)) == "SIGNATURE_UNTRUSTED"
    assert promote(board, tmp_path, changed, key("me").line(manifest)) == "SIGNATURE_INVALID"
    assert promote(board, tmp_path, manifest, key("you").line(manifest)) == "SIGNATURE_UNTRUSTED"
    after = {path.name: path.read_bytes() for path in current(board).iterdir() if path.is_file()}
    assert after == before  # above all, its own signature


def test_going_back_to_what_nobody_signed_is_refused(board: FakeRemote, bundle: Bundle, tmp_path: Path) -> None:
    deployed(board, bundle)
    second = make_bundle(tmp_path / "second", {"plan.json": b"{ }"})
    deployed(board, second, "me", signed=True)
    with pytest.raises(RuntimeFailedError) as caught:
        ask_once(board, str(board.home), "rollback", "tiny")
    assert caught.value.name == "SIGNATURE_MISSING"
    assert current(board).resolve().name == second.sha256[:16]


def heads(board: FakeRemote) -> set[bytes]:
    return {path.read_bytes()[:8] for path in (current(board) / "weights").glob("*.safetensors")}


def test_encrypted_files_are_stored_once_and_only_what_changed_is_sent(
    board: FakeRemote, bundle: Bundle, tmp_path: Path
) -> None:
    first = deployed(board, bundle, secret=KEY)
    assert heads(board) == {b"ELLMENC1"}
    assert oct((root(board) / "weights.key").stat().st_mode)[-3:] == "600"
    assert deployed(board, bundle, secret=KEY).unchanged
    second = make_bundle(tmp_path / "second", {"weights/layer.1.safetensors": b"two" * 5000})
    done = deployed(board, second, secret=KEY)
    changed = encryption.encrypted_bytes(15000)
    assert changed <= done.sent_bytes < changed + 6000 < first.sent_bytes  # a manifest and a list go with it
    ask_once(board, str(board.home), "gc")
    assert deployed(board, second, secret=KEY).unchanged


def test_from_plain_to_encrypted_and_back(board: FakeRemote, bundle: Bundle) -> None:
    deployed(board, bundle, "me", signed=True)
    assert heads(board) != {b"ELLMENC1"}
    done = deployed(board, bundle, "me", secret=KEY)
    assert heads(board) == {b"ELLMENC1"}
    assert not done.unchanged
    assert deployed(board, bundle, "me", secret=KEY).unchanged
    deployed(board, bundle, "me")
    assert b"ELLMENC1" not in heads(board)
    assert not (current(board) / "manifest.enc").exists()


def test_a_changed_encrypted_file_is_found_and_sent_again(board: FakeRemote, bundle: Bundle) -> None:
    deployed(board, bundle, secret=KEY)
    shard = current(board) / "weights/layer.0.safetensors"
    shard.chmod(0o644)
    with shard.open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    done = deployed(board, bundle, secret=KEY)
    assert encryption.encrypted_bytes(16384) == done.sent_bytes
    assert deployed(board, bundle, secret=KEY).unchanged


def test_another_key_is_not_put_over_the_one_that_others_need(board: FakeRemote, bundle: Bundle) -> None:
    deployed(board, bundle, secret=KEY)
    with pytest.raises(TrustError, match=f"has another key .*{encryption.key_id(KEY)}"):
        deployed(board, bundle, secret=KEY[::-1])
    assert (root(board) / "weights.key").read_bytes() == KEY
