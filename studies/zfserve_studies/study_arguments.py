"""Defines the arguments that every study has, and reads those that several studies share.

Most of them are those of the commands that call a service.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from zfserve_cli.connection_arguments import add_connection_arguments, add_model_argument
from zfserve_cli.output_files import one_picture

TIMEOUT_S = 600.0
"""One call of a study has many images, so it may last longer than one of the other commands."""


def add_service_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --model and the arguments of the connection. Studies are bulk work and have long timeouts by default."""
    add_model_argument(parser)
    add_connection_arguments(parser)
    parser.set_defaults(timeout=TIMEOUT_S, priority="bulk")


def picture_file(photos: Sequence[Path], arguments: argparse.Namespace, default: str) -> Path | None:
    """Returns the file of the picture of all photos, and makes its folder. None with --json and without --save.

    Raises:
        ValueError: it is no picture file, or one of the photos.
        OSError: the folder cannot be made.
    """
    if arguments.save is None and arguments.json:
        return None
    return one_picture(photos, arguments.save or Path(default))


def positive(text: str) -> int:
    """Parses a whole number above 0. Raises ArgumentTypeError if it is none."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
