"""Keeps the companion worker running as a child process. Knows its command line, never its code. Built by `app`."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from zfserve_runtime.metrics import Metrics

logger = logging.getLogger(__name__)


class Supervisor:
    """Starts a process, and starts it again whenever it ends, until stopped.

    Args:
        command: the process and its arguments.
        first_delay_s: before the first restart; doubled with every further one, up to `longest_delay_s`.
        stable_s: a process that lived this long starts the delays anew.
        grace_s: from SIGTERM to SIGKILL when stopped.
        pause: waits for some seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        metrics: Metrics,
        *,
        first_delay_s: float = 0.5,
        longest_delay_s: float = 30.0,
        stable_s: float = 60.0,
        grace_s: float = 10.0,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._command = tuple(command)
        self._metrics = metrics
        self._first_delay_s = first_delay_s
        self._longest_delay_s = longest_delay_s
        self._stable_s = stable_s
        self._grace_s = grace_s
        self._pause = pause

    async def run(self) -> None:
        """Run until cancelled; then the process is stopped before this returns."""
        delay_s = self._first_delay_s
        while True:
            began = time.monotonic()
            status = await self._run_once()
            if time.monotonic() - began >= self._stable_s:
                delay_s = self._first_delay_s
            logger.warning("the worker ended; it is started again", extra={"status": status, "delay_s": delay_s})
            await self._pause(delay_s)
            self._metrics.worker_restarts.inc()
            delay_s = min(2 * delay_s, self._longest_delay_s)

    async def _run_once(self) -> int:
        # Its own session: Ctrl-C in a terminal reaches the server only, which stops the worker after the last answer.
        # The pipe on its standard input closes if this process dies, however it dies; the worker then ends too.
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        logger.info("started the worker", extra={"worker_pid": process.pid})
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                await self._stop(process)
            if process.stdin is not None:
                process.stdin.close()

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._grace_s)
        except TimeoutError:
            logger.warning("the worker did not stop; killing it", extra={"grace_s": self._grace_s})
            process.kill()
            await process.wait()
