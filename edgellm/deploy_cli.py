"""Put a model on a board and switch over to it.

MODEL is a checkpoint directory or a Hub id, which is compiled for the board first, or a bundle made by `edgellm
compile`, which is sent as it is. Only what the board lacks is sent, and what was interrupted goes on where it stopped.
The board's old model keeps working until the new one has been verified there and has answered the golden prompts;
`edgellm rollback` goes back to it.

With --fleet the same is done to many boards, in waves, by Ansible.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from crosscompile.target import DEVICES
from edgellm import app_install, application, archive, board_gpu, cache, fleet_cli, layer_split, prefix, service
from edgellm import bundle as bundles
from edgellm.application import Application
from edgellm.board_session import count_of
from edgellm.boards import Board, find_board
from edgellm.bundle import MANIFEST, Bundle
from edgellm.compile_cli import (
    SCHEMES,
    StageDisplay,
    add_device,
    add_lora,
    add_prefix_arguments,
    add_quality_arguments,
    add_scheme_arguments,
    gate_of,
    gpu_layers_of,
    options_of,
    warn_of_gpu,
    wish_of,
)
from edgellm.connection import connect
from edgellm.deploy_screen import shown_transfer
from edgellm.deploy_trust import Trust, add_trust_arguments
from edgellm.deployment import Deployment, deploy
from edgellm.errors import UsageError
from edgellm.import_cli import unpacked
from edgellm.probe import Facts, probe
from edgellm.remembered import Remembered, recall, remember
from edgellm.remote import Remote
from edgellm.runtime_program import find_model
from edgellm.selection import add_board
from edgellm.service_cli import report_of, words
from edgellm.service_options import Wanted
from edgellm.terminal import one_line, size

_FLEET = """\
  [groups.kitchens]
  type = "rpi5"
  service = true

  [groups.kitchens.boards]
  oven = "pi@oven.local"
  fridge = { host = "pi@fridge.local:2222", type = "rpi4" }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgellm deploy --board rpi5 --host pi@raspberrypi.local ./MyModel\n"
        "  edgellm deploy --board virtual-rpi5 HuggingFaceTB/SmolLM2-135M-Instruct --scheme w8a8\n"
        "  edgellm deploy --board kitchen bundle/ --name assistant\n"
        "  edgellm deploy --board kitchen ./MyModel --sign home --require-signature\n"
        "  edgellm deploy --board kitchen model.edgellm --signed-by alice.pub\n"
        "  edgellm deploy --board kitchen --app voice_assistant --app-config home.toml\n"
        "  edgellm deploy --fleet kitchens.toml ./MyModel --check\n"
        "  edgellm deploy --fleet kitchens.toml ./MyModel --waves 1,10%,50% --max-failures 5%\n\n"
        "a fleet's file:\n" + _FLEET
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="checkpoint directory, Hub id, bundle, or file of `edgellm export`; a fleet's file may name it instead",
    )
    add_board(parser, required=False)
    parser.add_argument("--name", help="what the model is called on the board (default: its own name)")
    parser.add_argument(
        "--service",
        action="store_true",
        help="make it a service (see `edgellm service --help`); one that it is already keeps its port and options",
    )
    parser.add_argument(
        "--app",
        metavar="NAME",
        help="install an application beside the model, as a service: voice_assistant, or a folder with an app.toml; "
        "the board needs python3",
    )
    parser.add_argument("--app-config", metavar="FILE", help="the application's configuration on the board")
    parser.add_argument("--verify", action="store_true", help="hash everything on the board even if nothing changed")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_scheme_arguments(parser)
    add_prefix_arguments(parser)
    add_device(parser)
    add_lora(parser)
    add_quality_arguments(parser)
    add_trust_arguments(parser)
    fleet_cli.add_rollout(parser)
    parser.set_defaults(scheme=None, device=None)  # a fleet's file may have others


def main(args: argparse.Namespace) -> int:
    fleet_cli.check_place(args)
    if args.fleet is not None:
        gpu_layers_of(args)  # first of all: no board should be asked for what cannot be
        with ExitStack() as stack:

            def make(model: str, board: Board | None, scheme: str | None, device: str | None) -> Bundle:
                chosen = {"scheme": scheme or SCHEMES[0], "device": device or DEVICES[0]}
                return bundle_for(argparse.Namespace(**{**vars(args), "model": model, **chosen}), board, stack)

            return fleet_cli.deploy(args, make)
    app = app_of(args)
    if args.model is None:
        raise UsageError("which model? Add MODEL: a checkpoint directory, a Hub id or a bundle")
    args.scheme, args.device = args.scheme or SCHEMES[0], args.device or DEVICES[0]
    measures = args.gpu_layers == "auto"
    if measures and args.device == "vulkan":
        raise UsageError(f"--gpu-layers auto measures both devices: leave out --device {args.device}")
    if measures:
        args.device, args.gpu_layers = "both", None
    board = find_board(args.board, args.host)
    host = args.host or recall(board.label).host
    trust = Trust.of(args, board, host)  # a key that does not open should not cost a connection
    with connect(board, args.host) as remote, ExitStack() as stack:
        facts = probe(remote)  # first of all: a board that is off, or a wrong key, should not cost a compilation
        say(args, "board", describe(board, facts))
        wanted = args.device if args.gpu_layers is None else "split"
        lack = board_gpu.check(remote, wanted)  # likewise
        if app is not None:
            app_install.look(remote, facts, app)  # likewise
        if wanted != "cpu" and lack is None and not is_compiled(args.model):
            said: list[str] = []
            with StageDisplay(quiet=args.json) as display:
                display.update("asking the GPU's driver", 0, 0)
                board = board_gpu.ask(board, remote, wanted, said.append)
            for text in said:
                say(args, "GPU", text)
        bundle = trust.applied(bundle_for(args, board, stack), stack, quiet=args.json)
        device = bundle.manifest["target"].get("device", "cpu")
        if device != wanted:  # a finished bundle
            lack = board_gpu.check(remote, device)
        if lack is not None:
            say(args, "GPU", lack)
        elif device != "cpu":
            warn_of_gpu(board, device)
        done = sent(args, remote, facts, trust, bundle)
        layers = None
        gpu = done.proof.get("gpu")
        if measures and not (isinstance(gpu, dict) and "error" in gpu):  # else the processor computes, and it says why
            model, n_layers = find_model(remote, done.name), bundle.manifest["model"]["n_layers"]
            layers = layer_split.choose(model, n_layers, lambda text: say(args, "layers", text))
        if layers is not None:
            args.device, args.gpu_layers = DEVICES[0], layers
            bundle = trust.applied(bundle_for(args, board, stack), stack, quiet=args.json)
            done = sent(args, remote, facts, trust, bundle)
        remember(board.label, Remembered(host, done.name))
        healthy = served(args, remote, facts.home, done, bundle)
        if app is not None:
            healthy = {**healthy, "app": installed(args, remote, facts, app, done.name)}
    if args.json:
        print(json.dumps({"board": board.label, **asdict(done), "sha256": bundle.sha256, **healthy}))
    else:
        conclude(args, board, bundle, done)
        if healthy["service"]:
            say(args, "service", words(healthy))
    return 1 if healthy["healthy"] is False else 0


def sent(args: argparse.Namespace, remote: Remote, facts: Facts, trust: Trust, bundle: Bundle) -> Deployment:
    """Deploys the bundle, with progress."""
    with shown_transfer(quiet=args.json) as reporter:
        return deploy(
            bundle,
            remote,
            name=args.name,
            facts=facts,
            reporter=reporter,
            verify=args.verify,
            demand=trust.demand,
            secret=trust.secret,
        )


def served(args: argparse.Namespace, remote: Remote, home: str, done: Deployment, bundle: Bundle) -> dict[str, object]:
    """Makes the model a service with --service; restarts the one that it is already if the version changed.

    One that was made with a port and options of its own keeps them.
    """
    if args.service:
        model = find_model(remote, done.name)
        wanted = service.made_with(remote, home, done.name) or Wanted()
        found: service.Service | None = service.install(model, home, wanted)
    elif done.unchanged:
        found = service.find(remote, home, done.name)
    else:
        found = service.restart(remote, home, done.name)
    return report_of(remote, found, bundle.sha256)


def app_of(args: argparse.Namespace) -> Application | None:
    """The application of --app, if there is one; with it, the model that it names and --service are the default."""
    if args.app is None:
        if args.app_config is not None:
            raise UsageError("--app-config configures an application; add --app")
        return None
    app = application.find(args.app)
    if args.app_config is not None and not Path(args.app_config).is_file():
        raise UsageError(f"--app-config {args.app_config}: there is no such file")
    if args.model is None and app.model:
        args.model = str(app.folder / app.model)
    args.service = True
    return app


def installed(
    args: argparse.Namespace, remote: Remote, facts: Facts, app: Application, model: str
) -> dict[str, object]:
    """Installs the application and says so."""
    config = Path(args.app_config) if args.app_config is not None else None
    with shown_transfer(quiet=args.json) as reporter:

        def tell(text: str) -> None:
            reporter.stage(text)

        done = app_install.install(remote, facts, app, config, model, tell)
    sent = f"{size(done.sent_bytes)} sent" if done.sent_bytes else "it was there already"
    say(args, "app", f"{app.name}: {sent}, opened all its engines with Python {done.python}; {done.kind} service")
    return asdict(done)


def is_compiled(model: str) -> bool:
    """Whether MODEL is a bundle, or a file of `edgellm export`."""
    path = Path(model)
    return (path / MANIFEST).is_file() or (path.is_file() and path.suffix == archive.SUFFIX)


def bundle_for(args: argparse.Namespace, board: Board | None, stack: ExitStack) -> Bundle:
    """The bundle that MODEL is, or is compiled to for `board`, or is unpacked to until `stack` ends."""
    path = Path(args.model)
    if path.is_file() and path.suffix == archive.SUFFIX:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="import-", dir=cache.root())))
        path = unpacked(args.model, folder / path.stem, args.signed_by, quiet=args.json).path
    if (path / MANIFEST).is_file():
        if args.system_prompt is not None or args.tools is not None:
            raise UsageError(f"{path} is compiled already: --system-prompt and --tools go to `edgellm compile`")
        if args.lora is not None:
            raise UsageError(
                f"{path} is a bundle, whose weights are packed: compile the checkpoint with --lora instead"
            )
        if any(value is not None for value in (args.calibrate, args.budget, args.eval, args.max_kl)):
            raise UsageError(f"{path} is compiled already: what is for its quality goes to `edgellm compile`")
        if args.device != "cpu" or args.gpu_layers is not None:
            raise UsageError(f"{path} is compiled already: --device and --gpu-layers go to `edgellm compile`")
        bundle = bundles.read(path)
        say(args, "bundle", f"{path}: {bundle.name} {bundle.scheme} for {bundle.tier}, {size(bundle.n_bytes)}")
        return bundle
    from edgellm.compile import build

    assert board is not None
    wanted, wish, gate = prefix.read(args.system_prompt, args.tools), wish_of(args), gate_of(args)
    with StageDisplay(quiet=args.json) as display:
        made = build(
            args.model,
            board,
            options_of(args),
            context=args.context,
            prefix=wanted,
            progress=display.update,
            lora=args.lora,
            device=args.device,
            wish=wish,
            gate=gate,
            gpu_layers=gpu_layers_of(args),
        )
    bundle = made.bundle
    how = "compiled before" if made.cached else f"compiled in {made.report['seconds']['total']:.1f} s"
    say(args, "model", f"{bundle.name} {bundle.scheme} for {bundle.tier}, {size(bundle.n_bytes)}, {how}")
    return bundle


def say(args: argparse.Namespace, key: str, text: str) -> None:
    """A line of the transcript."""
    if not args.json:
        print(f"{key:<9}{text}", flush=True)


def describe(board: Board, facts: Facts) -> str:
    """The board in a line: kitchen: Raspberry Pi 5, aarch64, 8.3 GB of memory (7.9 GB available), …"""
    memory = f"{size(facts.memory_bytes)} of memory ({size(facts.memory_available_bytes)} available)"
    return f"{board.label}: {board.name}, {facts.arch}, {memory}, {size(facts.disk_free_bytes)} of disk free"


def conclude(args: argparse.Namespace, board: Board, bundle: Bundle, done: Deployment) -> None:
    """What was done, and what to type next."""
    if done.unchanged:
        say(args, "sent", f"nothing: {done.name} is on {board.label} already")
    else:
        rate = f" at {size(done.sent_bytes / done.transfer_s)}/s" if done.transfer_s > 0.05 else ""
        kept = f"; {size(done.kept_bytes)} were there already" if done.kept_bytes else ""
        say(args, "sent", f"{size(done.sent_bytes)} in {done.transfer_s:.1f} s{rate}{kept}")
        say(args, "checked", f"{len(bundle.files)} checksums, on the board{proven(done)}")
    if gpu := gpu_proven(done):
        say(args, "GPU", gpu)
    say(args, "in use", f"{done.name} after {done.total_s:.1f} s; talk to it: edgellm chat --board {board.label}")


def proven(done: Deployment) -> str:
    """What the board found when it tried the model: golden prompts, memory, and speed where the model has a card."""
    proof, words = done.proof, ""
    if isinstance(golden := proof.get("golden"), dict):
        words += f", {count_of(golden, 'prompts')} golden prompts, {size(count_of(proof, 'peak_rss_bytes'))} of memory"
    if isinstance(speed := proof.get("decode_tok_s"), (int, float)):
        words += f", {speed:.1f} tokens/s"
    if throttled := proof.get("throttled"):
        words += f"; the processor is slowed: {one_line(str(throttled))}"
    return words


def gpu_proven(done: Deployment) -> str:
    """What the board found when it tried its GPU; "" where the model is for the processor alone."""
    gpu = done.proof.get("gpu")
    if not isinstance(gpu, dict):
        return ""
    if "error" in gpu:
        return one_line(f"the processor computes: {gpu['error']}")
    n_tokens = count_of(gpu, "tokens")
    same = f"{count_of(gpu, 'same')} of {n_tokens} golden tokens as on the processor"
    words = [same if n_tokens else "it has no golden prompts to prove itself with"]
    for key, what in (("decode_tok_s", "GPU"), ("cpu_decode_tok_s", "processor")):
        if isinstance(speed := gpu.get(key), (int, float)) and speed > 0:
            words.append(f"{speed:.1f} tokens/s on the {what}")
    return f"{one_line(str(gpu.get('name')))}: {', '.join(words)}"
