"""Remove a model from a board, with all of its versions and its service. Files that other models share with it stay.

With --app, an application is removed instead: its service, its versions, its log. The model beside it stays, and so
does the application's configuration on the board, unless --purge is there. What is not on the board is no error.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from edgellm import app_remove, service
from edgellm.board_session import ask_once, count_of
from edgellm.boards import find_board
from edgellm.connection import connect, model_name
from edgellm.errors import UsageError
from edgellm.probe import home_of
from edgellm.runtime_program import find_model
from edgellm.selection import add_board
from edgellm.terminal import size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n"
        "  edgellm undeploy --board kitchen --model assistant\n"
        "  edgellm undeploy --board kitchen --app voice_assistant --purge"
    )
    add_board(parser)
    parser.add_argument("--model", metavar="NAME", help="which one; may be left out if there is only one")
    parser.add_argument("--app", metavar="NAME", help="an application of `deploy --app`, instead of a model")
    parser.add_argument("--purge", action="store_true", help="with --app: remove its configuration on the board, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    if args.app is not None:
        return remove_app(args)
    if args.purge:
        raise UsageError("--purge removes an application's configuration; add --app")
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        # A model that never came into use is not found, but can be removed by its name.
        name = model_name(args.model) if args.model else find_model(remote).name
        home = home_of(remote)
        service.remove(remote, home, name)  # it could not start any more
        answer = ask_once(remote, home, "undeploy", name)
    if args.json:
        print(json.dumps({"board": board.label, **answer}))
    else:
        print(f"{name} is removed from {board.label}; {size(count_of(answer, 'freed_bytes'))} are free again")
    return 0


def remove_app(args: argparse.Namespace) -> int:
    """Removes an application and says what that was."""
    if args.model is not None:
        raise UsageError("--app and --model: remove one after the other")
    name = app_remove.name_of(args.app)
    board = find_board(args.board, args.host)
    with connect(board, args.host) as remote:
        done = app_remove.remove(remote, home_of(remote), name, args.purge)
    if args.json:
        print(json.dumps({"board": board.label, "removed": done.anything, **asdict(done)}))
        return 0
    if not done.anything:
        print(f"{name} is not on {board.label}: nothing to remove")
    else:
        what = [f"its {done.service} service"] if done.service else []
        what += [f"{len(done.versions)} version{'s' if len(done.versions) != 1 else ''}"] if done.versions else []
        what += ["its configuration"] if done.config == "removed" else []
        print(f"{name} is removed from {board.label}: {', '.join(what) or 'what was left of it'}; "
              f"{size(done.freed_bytes)} are free again")  # fmt: skip
    if done.config == "kept":
        print(f"its configuration stays in ~/.edgellm/apps/{name}/config.toml; --purge removes it, too")
    return 0
