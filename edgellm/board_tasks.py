"""What Ansible's action plug-ins do, each on one board, on this side of the connection: the board needs no Python.

    deploy     a bundle is the version in use, perhaps as a service
    undeploy   a model is not there
    rollback   boards that use a certain version go back to the one before
    serve      a model is a service, or is not
    gc         nothing is there that no model needs
    inform     what is there
    ask_gpu    what its GPU allows kernels

Each takes a `Task` and answers what Ansible wants to hear: a dict with `changed`, and `diff` where it is asked for.
Done twice, the second time changes nothing. With `check` nothing is changed at all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgellm import board_gpu, encryption, service, signing
from edgellm import bundle as bundles
from edgellm.address import AdbAddress, SshAddress, parse_where
from edgellm.board_session import BoardSession, Survey, ask_once, count_of
from edgellm.boards import load_board
from edgellm.bundle import Bundle
from edgellm.connection import connect, model_name
from edgellm.deployment import deploy as deploy_bundle
from edgellm.errors import BoardError, EdgeError, HostKeyError, LoginError, RemoteError, UnreachableError
from edgellm.local_remote import LocalRemote
from edgellm.preview import described, look, manifest_in_use, preview
from edgellm.probe import home_of, probe
from edgellm.remote import Remote
from edgellm.rollout_log import BoardReporter, write
from edgellm.runtime_program import find_model
from edgellm.service_cli import report_of
from edgellm.service_options import Wanted
from edgellm.trust import Demand

UNREACHABLE = (UnreachableError, HostKeyError, LoginError)
"""What Ansible calls unreachable: nothing was done on the board, nor could be."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Where:
    """How a board is reached.

    name      Ansible's name for it
    type      of boards/, where the inventory says it
    address   as edgellm writes it; where it is None, ssh is how Ansible would go about it, None for this machine
    password  for ssh, from a vault; None: keys and the agent only, for nobody is there to ask
    """

    name: str
    type: str | None = None
    address: str | None = None
    ssh: SshAddress | None = None
    password: str | None = None

    def connect(self) -> Remote:
        ssh = self.ssh
        if self.address is not None:
            android = self.type is not None and load_board(self.type).os == "android"
            where = parse_where(self.address, android)
            if isinstance(where, AdbAddress):
                from edgellm.adb import AdbRemote

                return AdbRemote(where, self.name)
            ssh = where
        elif self.type is not None and ssh is not None and ssh.host == self.name and load_board(self.type).virtual:
            return connect(load_board(self.type))
        if ssh is None:
            return LocalRemote(self.name)
        from edgellm.ssh import SshRemote

        password = self.password
        return SshRemote(ssh, self.name, ask_hidden=(lambda question: password) if password is not None else None)


@dataclass(frozen=True)
class Task:
    """One task on one board. options: checked by Ansible against the module's documentation."""

    where: Where
    options: dict[str, Any]
    check: bool = False
    diff: bool = False


def deploy(task: Task) -> Answer:
    options = task.options
    write("stage", board=task.where.name, text="connecting")
    with task.where.connect() as remote, ExitStack() as stack:
        reporter = BoardReporter(task.where.name)
        facts = probe(remote)
        bundle, secret = _bundle(task, stack)
        demand = _demand(options)
        name = model_name(options.get("name") or bundle.name)
        before = look(remote, facts.home).models.get(name)
        old = before.current if before else None
        answer: Answer = {"model": name, "version": bundle.sha256[:16], "sha256": bundle.sha256, "previous": old}
        if task.diff:
            was = described(manifest_in_use(remote, facts.home, name), old)
            answer["diff"] = _diff(task, name, was, described(bundle.manifest, answer["version"]))
        if task.check:
            seen = preview(bundle, remote, name, facts, demand)
            if seen.note:
                reporter.note(seen.note)
            becomes = bool(options.get("service")) and not _is_served(remote, facts.home, name, options, old)
            return {**answer, "changed": seen.changes or becomes, "sent_bytes": seen.needed_bytes}
        done = deploy_bundle(
            bundle,
            remote,
            name=name,
            facts=facts,
            reporter=reporter,
            verify=bool(options.get("verify")),
            demand=demand,
            secret=secret,
        )
        answer |= {
            "changed": not done.unchanged,
            "sent_bytes": done.sent_bytes,
            "kept_bytes": done.kept_bytes,
            "seconds": round(done.total_s, 2),
            "proof": done.proof,
            "in_use": answer["version"],
        }
        reporter.stage("looking after its service")

        def served() -> service.Service | None:
            if options.get("service") and not _is_served(remote, facts.home, name, options, answer["version"]):
                answer["changed"] = True
                wanted = _wanted(remote, facts.home, name, options)
                return service.install(find_model(remote, name), facts.home, wanted)
            look_after = service.find if done.unchanged else service.restart
            return look_after(remote, facts.home, name)

        return _after_switch(answer, remote, served, bundle.sha256)


def undeploy(task: Task) -> Answer:
    with task.where.connect() as remote:
        home, name = home_of(remote), model_name(task.options["name"])
        there = look(remote, home).models.get(name)
        answer: Answer = {"changed": there is not None, "model": name, "previous": there.current if there else None}
        if task.diff:
            was = described(manifest_in_use(remote, home, name), there.current if there else None)
            answer["diff"] = _diff(task, name, was, "")
        if there is not None and not task.check:
            service.remove(remote, home, name)
            answer["freed_bytes"] = count_of(ask_once(remote, home, "undeploy", name), "freed_bytes")
        return answer


def rollback(task: Task) -> Answer:
    """Only what uses `from_version` goes back: done twice, the second time finds nothing to do."""
    leaves = task.options["from_version"].lower()
    with task.where.connect() as remote:
        home, name = home_of(remote), task.options.get("name")
        survey = look(remote, home)
        found = [m for m in survey.models.values() if (name in (None, m.name)) and (m.current or "").startswith(leaves)]
        if not found:
            return {"changed": False, "in_use": _versions(survey), "version": None}
        if len(found) > 1:
            raise RemoteError(f"{remote.name}: several models use {leaves} there; name one of them")
        model = found[0]
        answer: Answer = {"changed": True, "model": model.name, "previous": model.current, "version": model.previous}
        if task.diff:
            answer["diff"] = _diff(task, model.name, f"version: {model.current}\n", f"version: {model.previous}\n")
        if model.previous is None:
            raise RemoteError(
                f"{remote.name}: there is no version of {model.name} before {model.current} to go back to; deploy "
                "another one, or take it away with `edgellm undeploy`"
            )
        if task.check:
            return answer
        write("stage", board=task.where.name, text="the board is trying the version before")
        with BoardSession(remote, home) as board:  # it holds the lock, so that nothing changes in between
            now = board.survey().models.get(model.name)
            if now is None or now.current != model.current:
                return {**answer, "changed": False, "version": now.current if now else None}
            proof = board.ask("rollback", model.name)
        answer |= {"version": proof.get("promoted"), "proof": proof, "in_use": proof.get("promoted")}
        return _after_switch(answer, remote, lambda: service.restart(remote, home, model.name), None)


def serve(task: Task) -> Answer:
    options = task.options
    with task.where.connect() as remote:
        home, name = home_of(remote), model_name(options["name"])
        if options.get("state") == "absent":
            there = service.find(remote, home, name) is not None
            if there and not task.check:
                service.remove(remote, home, name)
            return {"changed": there, "model": name, "service": None}
        survey = look(remote, home).models.get(name)
        served = _is_served(remote, home, name, options, survey.current if survey else None)
        if task.check:
            return {"changed": not served, "model": name}
        model = find_model(remote, name)
        if served:
            found = service.find(remote, home, name)
        else:
            found = service.install(model, home, _wanted(remote, home, name, options))
        return _well({"changed": not served, "model": name}, report_of(remote, found, None))


def gc(task: Task) -> Answer:
    with task.where.connect() as remote:
        home = home_of(remote)
        if not look(remote, home).version:
            return {"changed": False, "removed": 0, "freed_bytes": 0}
        if task.check:
            return {"changed": False, "skipped": True, "msg": "only the board itself knows what it would remove"}
        done = ask_once(remote, home, "gc")
        return {"changed": bool(done.get("removed")), **done}


def inform(task: Task) -> Answer:
    with task.where.connect() as remote:
        facts = probe(remote)
        survey = look(remote, facts.home)
    models = {name: asdict(model) for name, model in survey.models.items()}
    return {
        "changed": False,
        "in_use": _versions(survey),
        "models": models,
        "runtime": survey.version or None,
        "arch": facts.arch,
        "memory_bytes": facts.memory_bytes,
        "free_bytes": facts.disk_free_bytes,
    }


def ask_gpu(task: Task) -> Answer:
    """What keeps a GPU from being asked is an answer, too."""
    if task.where.type is None:
        raise BoardError(f"{task.where.name}: edgellm_board is missing; set it to a type that `edgellm boards` lists")
    board = load_board(task.where.type)
    write("stage", board=task.where.name, text="connecting")
    with task.where.connect() as remote:
        write("stage", board=task.where.name, text="asking the driver of its GPU")
        return {"changed": False, **board_gpu.answer(board, remote, passing=task.check)}


def _bundle(task: Task, stack: ExitStack) -> tuple[Bundle, bytes | None]:
    """The bundle, encrypted with the board's own key if that is asked for."""
    options = task.options
    bundle = bundles.read(Path(options["bundle"]).expanduser())
    if not options.get("encrypt"):
        return bundle, None
    path = encryption.key_path(task.where.name)
    if task.check and not path.exists():
        return bundle, None  # it has never been sent anything with this key: all of it would be
    secret = encryption.load_key(path, make=not task.check)
    return stack.enter_context(encryption.encrypted(bundle, secret)), secret


def _demand(options: dict[str, Any]) -> Demand:
    by = tuple(signing.load_public(text) for text in options.get("signed_by") or ())
    return Demand(bool(options.get("require_signature")) or bool(by), by)


def _wanted(remote: Remote, home: str, name: str, options: dict[str, Any]) -> Wanted:
    """What the service is to be: what it is, where it is one already, but for the options that are given."""
    now = service.made_with(remote, home, name) or Wanted()
    given = {key: options[key] for key in ("sessions", "waiting", "context", "threads") if options.get(key) is not None}
    keep = options.get("keep")
    return Wanted(
        int(options.get("port") or now.port), now.with_options(given), now.keep if keep is None else bool(keep)
    )


def _is_served(remote: Remote, home: str, name: str, options: dict[str, Any], version: str | None) -> bool:
    """Whether the model is the service that is wanted. version: the one in use, None without one."""
    if version is None:
        return False
    return service.as_wanted(find_model(remote, name), home, _wanted(remote, home, name, options)) is not None


def _after_switch(
    answer: Answer, remote: Remote, served: Callable[[], service.Service | None], sha256: str | None
) -> Answer:
    """What came of the service. Whatever goes wrong now, another version is in use, and the answer says so."""
    try:
        return _well(answer, report_of(remote, served(), sha256))
    except EdgeError as error:
        return {**answer, "failed": True, "healthy": False, "msg": str(error), "error": type(error).__name__}


def _well(answer: Answer, healthy: dict[str, Any]) -> Answer:
    answer |= healthy
    if healthy["healthy"] is False:
        health = healthy.get("health")
        why = health.get("text") if isinstance(health, dict) else "it does not answer"
        answer |= {"failed": True, "msg": f"{answer['model']} is in use, but its service is not well: {why}"}
    return answer


def _diff(task: Task, name: str, before: str, after: str) -> Answer:
    header = f"{task.where.name}: {name}"
    return {"before": before, "after": after, "before_header": f"{header} (in use)", "after_header": f"{header} (new)"}


def _versions(survey: Survey) -> dict[str, str | None]:
    return {name: model.current for name, model in survey.models.items()}
