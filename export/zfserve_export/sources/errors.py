"""This module defines the error of a source. It imports nothing heavy: the command line checks paths at once."""

import signal

from zfserve_model.graph.errors import readable


class SourceError(ValueError):
    """The source cannot be exported. The message is one sentence, which says what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(readable(sentence))


def is_interrupt(error: BaseException) -> bool:
    """Returns True for what the user or the system ended the command with: an interrupt, or SIGTERM.

    Everything else that a user's code raises, such as its own SystemExit, is a failure of that code.
    """
    ended = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM  # from `sigterm_as_exit`
    return ended or isinstance(error, KeyboardInterrupt)


def first_line(error: BaseException) -> str:
    """Returns the type and the first line of an error that foreign code raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
