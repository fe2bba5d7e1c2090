"""The command `zfserve token`. It adds, lists and removes callers in the file for `zfserve serve --tokens`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zfserve_runtime.access.callers_file import (
    CallerEntry,
    CallersFile,
    CallersFileError,
    new_token,
    read_callers_file,
    write_callers_file,
)
from zfserve_runtime.access.permissions import ALL, GROUPS
from zfserve_runtime.file_lock import exclusive_lock

OK, UNUSABLE = 0, 2

ALLOWED_BY_DEFAULT = "classify,project,explain,describe,infer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    new = actions.add_parser("new", help="add a caller and print its token, once")
    new.add_argument("name", help="the caller's name, as the log will show it")
    new.add_argument(
        "--allow",
        default=ALLOWED_BY_DEFAULT,
        metavar="WHAT,...",
        help=f"any of {', '.join(GROUPS)}, {ALL}, or full names of methods (default: %(default)s)",
    )
    new.add_argument(
        "--certificate", metavar="NAME", help="make no token; recognise the caller by a TLS certificate with this name"
    )
    new.set_defaults(action=_new)
    actions.add_parser("list", help="list the callers and what they may call").set_defaults(action=_list)
    remove = actions.add_parser("remove", help="remove a caller; a running service refuses it within a second")
    remove.add_argument("name")
    remove.set_defaults(action=_remove)
    for action in actions.choices.values():
        action.add_argument(
            "--tokens",
            metavar="FILE",
            type=Path,
            default=os.environ.get("ZFSERVE_TOKENS", "tokens.json"),
            help="the file of callers, as for `zfserve serve` (default: ZFSERVE_TOKENS, otherwise tokens.json)",
        )


def run(arguments: argparse.Namespace) -> int:
    action: Callable[[argparse.Namespace], None] = arguments.action
    try:
        action(arguments)
    except ValidationError as error:
        return _fail("; ".join(str(fault["msg"]).removeprefix("Value error, ") for fault in error.errors()))
    except (CallersFileError, _UnknownCaller) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{arguments.tokens} cannot be written: {error.strerror}")
    return OK


class _UnknownCaller(ValueError):
    """The file has no caller of that name."""


def _new(arguments: argparse.Namespace) -> None:
    token, digest = (None, None) if arguments.certificate else new_token()
    entry = CallerEntry(
        name=arguments.name,
        token_sha256=digest,
        certificate=arguments.certificate,
        allow=tuple(word.strip() for word in arguments.allow.split(",")),
    )
    _change(arguments.tokens, lambda callers: CallersFile(callers=(*callers.callers, entry)))
    if token is not None:
        # Standard output holds the token alone, so that a script can pass it on.
        sys.stdout.write(f"{token}\n")
        Console(stderr=True).print(
            f"the token of {entry.name} is shown only this once; {escape(str(arguments.tokens))} holds its sha256",
            highlight=False,
            soft_wrap=True,
        )


def _list(arguments: argparse.Namespace) -> None:
    table = Table("caller", "recognised by", "may call", box=None, pad_edge=False)
    for entry in read_callers_file(arguments.tokens).callers:
        by = ["a token"] * (entry.token_sha256 is not None)
        by += [f"the certificate of {entry.certificate}"] * (entry.certificate is not None)
        table.add_row(entry.name, escape(" or ".join(by)), ", ".join(entry.allow))
    Console().print(table)


def _remove(arguments: argparse.Namespace) -> None:
    def without(file: CallersFile) -> CallersFile:
        kept = tuple(entry for entry in file.callers if entry.name != arguments.name)
        if len(kept) == len(file.callers):
            raise _UnknownCaller(
                f"{arguments.tokens} has no caller {arguments.name}; `zfserve token list` shows its callers"
            )
        return CallersFile(callers=kept)

    _change(arguments.tokens, without)


def _change(file: Path, change: Callable[[CallersFile], CallersFile]) -> None:
    """Changes the file under a lock, so that two commands at the same time do not lose each other's change."""
    with exclusive_lock(file.with_name(f".{file.name}.lock"), lambda: None):
        before = read_callers_file(file) if file.exists() else CallersFile()
        write_callers_file(file, change(before))


def _fail(message: str) -> int:
    Console(stderr=True).print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    return UNUSABLE
