"""Defines the errors of importing and running a graph."""

import re

_LONGEST_WORD = 100
_LONGEST_SENTENCE = 1000


class GraphError(ValueError):
    """The file cannot be used as a network. The message is one sentence that says what to do.

    A file may hold names of any length, so the message is shortened.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(readable(sentence))


class UnsupportedNode(ValueError):
    """A pass has to go through a node whose operation is not in the table. The message names both."""

    def __init__(self, sentence: str) -> None:
        super().__init__(readable(sentence))


def readable(sentence: str) -> str:
    """Returns a sentence on one line, without control characters and with long names cut short.

    The end of a sentence says what to do, so a long sentence loses its middle.
    """
    line = re.sub(r"[\x00-\x20\x7f-\x9f]+", " ", sentence).strip()
    line = re.sub(rf"[^ ]{{{_LONGEST_WORD + 1},}}", lambda word: f"{word[0][:60]}…{word[0][-20:]}", line)
    if len(line) <= _LONGEST_SENTENCE:
        return line
    return f"{line[: _LONGEST_SENTENCE // 2]} … {line[-_LONGEST_SENTENCE // 2 :]}"
