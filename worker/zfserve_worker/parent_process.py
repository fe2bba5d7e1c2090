"""Notices that the parent process of the worker has ended. Used by `app`."""

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STDIN = 0


@contextmanager
def watch_parent(on_exit: Callable[[], None]) -> Iterator[None]:
    """Calls `on_exit` when the pipe on standard input closes, as long as the block runs.

    The parent process holds the other end and writes nothing. The kernel closes the pipe however the parent dies.

    Raises:
        OSError: standard input is not a pipe.
    """
    mode = os.fstat(STDIN).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise OSError("standard input is not a pipe from a parent process; leave out --exit-with-parent")
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            ended = not os.read(STDIN, 4096)
        except ConnectionResetError:
            ended = True
        if ended:
            loop.remove_reader(STDIN)
            on_exit()

    loop.add_reader(STDIN, read)
    try:
        yield
    finally:
        loop.remove_reader(STDIN)
