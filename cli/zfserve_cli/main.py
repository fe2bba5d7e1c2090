"""Runs the command `zfserve`. It has the table of commands, and imports only the module of the command to run."""

import argparse
import difflib
import errno
import importlib
import importlib.metadata
import io
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from zfserve_protos.extras import not_installed

from zfserve_cli.exit_statuses import FAILED, INTERRUPTED, MEANINGS, NOT_INSTALLED, OK, UNUSABLE


class Command(NamedTuple):
    """Describes one command.

    Attributes:
        summary: the command's line in `zfserve --help`.
        module: the module that runs the command. It has `add_arguments(parser)`, and `run(arguments)` that returns the
            exit status.
        extra: the extra of pyproject.toml that the command needs, or "" if the base install is enough.
    """

    summary: str
    module: str
    extra: str


COMMANDS = {
    "classify": Command("print the most probable classes of photos", "zfserve_cli.classify_command", ""),
    "project": Command("show which pixels drove the feature maps", "zfserve_cli.project_command", ""),
    "explain": Command("show which places of photos speak for a class", "zfserve_cli.explain_command", ""),
    "occlude": Command("slide a square over photos", "zfserve_studies.occlude_command", "studies"),
    "invariance": Command("move, scale, turn and recolour photos", "zfserve_studies.invariance_command", "studies"),
    "correspondence": Command("compare parts of photos", "zfserve_studies.correspondence_command", "studies"),
    "ablate": Command("measure accuracy without feature maps", "zfserve_studies.ablate_command", "studies"),
    "transfer": Command("learn new classes from each layer", "zfserve_studies.transfer_command", "studies"),
    "info": Command("describe the models that a service serves", "zfserve_cli.info_command", ""),
    "health": Command("check if a service is ready", "zfserve_cli.health_command", ""),
    "top": Command("watch load, latency and batches, live", "zfserve_cli.top.top_command", ""),
    "atlas": Command("show which photos excite each map most", "zfserve_studies.atlas_command", "studies"),
    "serve": Command("run the service", "zfserve_server.serve_command", "server"),
    "worker": Command("run the worker that computes projections", "zfserve_worker.worker_command", "worker"),
    "token": Command("manage the callers of a service", "zfserve_runtime.access.token_command", "server"),
    "train": Command("train a network on folders of photos", "zfserve_model.train_command", "train"),
    "compare": Command("compare training runs in one table", "zfserve_model.compare_command", "train"),
    "evaluate": Command("measure the accuracy of a bundle or a network", "zfserve_export.evaluate_command", "export"),
    "export": Command("export a network to a bundle", "zfserve_export.export_command", "export"),
    "compile": Command("compile a TensorRT engine from a bundle", "zfserve_engines.compile_command", "tensorrt-rtx"),
    "engines": Command("list, verify or remove compiled engines", "zfserve_engines.engines_command", "tensorrt-rtx"),
    "bench": Command("measure the service against its limits", "zfserve_bench.bench_command", "dev"),
}

_USAGE = "usage: zfserve COMMAND [OPTIONS]     zfserve COMMAND --help     zfserve --version"

_OUTPUT_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status. `zfserve --help` lists the statuses.

    Args:
        argv: the arguments without the program's name. None means the arguments of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file name may be invalid text, and a terminal may not have every character.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv) or ["--help"])
        sys.stdout.flush()  # the interpreter's own flush at its end would not report a full disk
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output ended, as `head` does
        _drop_output()
        return OK
    except OSError as error:
        if error.errno not in _OUTPUT_FAULTS:
            raise
        _drop_output()
        return _fail(f"the output cannot be written: {error.strerror}", FAILED)
    return status


def _dispatch(argv: list[str]) -> int:
    name, *rest = argv
    if name in ("-h", "--help", "help"):
        _print(_help())
        return OK
    if name == "--version":
        _print(f"zfserve {importlib.metadata.version('zfserve')}")
        return OK
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `zfserve {near[0]}`?" if near else "`zfserve --help` lists the commands"
        return _fail(f"there is no command {name!r}; {hint}", UNUSABLE)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # users need no log messages of gRPC about connections
    try:
        return _run(name, rest)
    except ModuleNotFoundError as error:
        missing, extra = error.name or "", COMMANDS[name].extra
        if not extra or missing.startswith("zfserve_"):
            raise
        return _fail(f"`zfserve {name}` cannot run: {not_installed(missing, extra)}", NOT_INSTALLED)


def _run(name: str, argv: Sequence[str]) -> int:
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    summary = command.summary[0].upper() + command.summary[1:] + "."
    parser = argparse.ArgumentParser(prog=f"zfserve {name}", description=summary)
    module.add_arguments(parser)
    status: int = module.run(parser.parse_args(argv))
    return status


def _help() -> str:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {bold}{name:<{width}}{plain}{command.summary}" for name, command in COMMANDS.items())
    statuses = "\n".join(f"  {status:<10}{meaning}" for status, meaning in MEANINGS.items())
    return (
        f"{bold}zfserve{plain} serves a convolutional network, and shows which pixels drove its feature maps.\n\n"
        f"{_USAGE}\n\ncommands:\n{commands}\n\nexit status:\n{statuses}"
    )


def _drop_output() -> None:
    """Discards the rest of the output, so that the interpreter's flush at its end does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"zfserve: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
