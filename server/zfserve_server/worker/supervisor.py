"""Keeps the companion worker running as a child process. Knows its command line, never its code. Built by `app`."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from zfserve_runtime.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Supervisor:
    """Starts a process, and starts it again whenever it ends, until stopped.

    Args:
        command: the process and its arguments.
        first_delay_s: before the first restart; doubled with every further one, up to `longest_delay_s`.
        stable_s: a process that lived this long starts the delays anew.
        grace_s: from SIGTERM to SIGKILL when stopped.
        answers: asks the process a question and waits for the answer, up to the seconds given; False where none came.
            One that is stopped (SIGSTOP) or hangs is killed then, and started again. None: nobody asks.
        starting_s: how long the first answer may take.
        silence_s: how long every other may.
        look_every_s: between an answer and the next question.
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
        answers: Callable[[float], Awaitable[bool]] | None = None,
        starting_s: float = 300.0,
        silence_s: float = 20.0,
        look_every_s: float = 5.0,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._command = tuple(command)
        self._metrics = metrics
        self._first_delay_s = first_delay_s
        self._longest_delay_s = longest_delay_s
        self._stable_s = stable_s
        self._grace_s = grace_s
        self._answers = answers
        self._starting_s = starting_s
        self._silence_s = silence_s
        self._look_every_s = look_every_s
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
        watching = (
            None if self._answers is None else asyncio.create_task(self._kill_once_silent(process, self._answers))
        )
        try:
            return await process.wait()
        finally:
            if watching is not None:
                watching.cancel()
            if process.returncode is None:
                await self._stop(process)
            if process.stdin is not None:
                process.stdin.close()

    async def _kill_once_silent(
        self, process: asyncio.subprocess.Process, answers: Callable[[float], Awaitable[bool]]
    ) -> None:
        patience_s = self._starting_s
        while await answers(patience_s):
            patience_s = self._silence_s
            await asyncio.sleep(self._look_every_s)
        logger.error("the worker does not answer; killing it", extra={"silence_s": patience_s})
        process.kill()

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._grace_s)
        except TimeoutError:
            logger.warning("the worker did not stop; killing it", extra={"grace_s": self._grace_s})
            process.kill()
            await process.wait()
