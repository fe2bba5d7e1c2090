"""Keeps the companion worker running as a child process. It knows the command line of the worker, not its code.

Built by `companion`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from zfserve_runtime.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestartPolicy:
    """Says how long to wait before a restart. The delay doubles with each restart (exponential backoff).

    Attributes:
        first_delay_s: seconds before the first restart.
        max_delay_s: the longest delay, in seconds.
        stable_s: after a process has lived this many seconds, the next delay is the first one again.
    """

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    stable_s: float = 60.0


@dataclass(frozen=True)
class ProbePolicy:
    """Says how to find out that a process hangs or is stopped (SIGSTOP). Such a process is killed and restarted.

    Attributes:
        probe: waits for a sign of life for at most the given seconds. Returns False if there was none.
        startup_timeout_s: seconds that the first probe may take.
        timeout_s: seconds that each later probe may take.
        interval_s: seconds between two probes.
    """

    probe: Callable[[float], Awaitable[bool]]
    startup_timeout_s: float = 300.0
    timeout_s: float = 20.0
    interval_s: float = 5.0


class Supervisor:
    """Starts a process, and restarts it each time it ends.

    Args:
        command: the process and its arguments.
        metrics: counts the restarts.
        restart: the delays before restarts.
        probing: the probes of the process; None: no probes.
        grace_s: seconds from SIGTERM to SIGKILL when the process is stopped.
        sleep: waits for the given seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        metrics: Metrics,
        *,
        restart: RestartPolicy | None = None,
        probing: ProbePolicy | None = None,
        grace_s: float = 10.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._command = tuple(command)
        self._metrics = metrics
        self._restart = restart or RestartPolicy()
        self._probing = probing
        self._grace_s = grace_s
        self._sleep = sleep

    async def run(self) -> None:
        """Runs until cancelled. It stops the process before it returns."""
        delay_s = self._restart.first_delay_s
        while True:
            began = time.monotonic()
            status = await self._run_once()
            if time.monotonic() - began >= self._restart.stable_s:
                delay_s = self._restart.first_delay_s
            logger.warning("the worker ended; it is restarted", extra={"status": status, "delay_s": delay_s})
            await self._sleep(delay_s)
            self._metrics.worker_restarts.inc()
            delay_s = min(2 * delay_s, self._restart.max_delay_s)

    async def _run_once(self) -> int:
        # The worker has a session of its own, so that Ctrl-C in a terminal reaches only the server, which stops the
        # worker after the last answer. The pipe on the worker's standard input closes when this process dies in any
        # way, and the worker then ends too.
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        logger.info("started the worker", extra={"worker_pid": process.pid})
        probing = None
        if self._probing is not None:
            probing = asyncio.create_task(self._kill_if_silent(process, self._probing))
        try:
            return await process.wait()
        finally:
            if probing is not None:
                probing.cancel()
            if process.returncode is None:
                await self._stop(process)
            if process.stdin is not None:
                process.stdin.close()

    async def _kill_if_silent(self, process: asyncio.subprocess.Process, probing: ProbePolicy) -> None:
        timeout_s = probing.startup_timeout_s
        while await probing.probe(timeout_s):
            timeout_s = probing.timeout_s
            await asyncio.sleep(probing.interval_s)
        logger.error("the worker does not answer and is killed", extra={"silence_s": timeout_s})
        process.kill()

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._grace_s)
        except TimeoutError:
            logger.warning("the worker did not stop and is killed", extra={"grace_s": self._grace_s})
            process.kill()
            await process.wait()
