"""Defines the arguments that every study has. They are those of the commands that call a service."""

import argparse

from zfserve_cli.connection_arguments import add_connection_arguments, add_model_argument

TIMEOUT_S = 600.0
"""One call of a study has many images, so it may last longer than one of the other commands."""


def add_service_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --model and the arguments of the connection. Studies are bulk work and have long timeouts by default."""
    add_model_argument(parser)
    add_connection_arguments(parser)
    parser.set_defaults(timeout=TIMEOUT_S, priority="bulk")
