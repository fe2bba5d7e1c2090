"""The supervisor runs real child processes. Each is a line of Python that notes its id in a file, and ends or stays."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from zfserve_runtime.telemetry.metrics import Metrics
from zfserve_server.worker.supervisor import ProbePolicy, RestartPolicy, Supervisor

STAY = "import signal; signal.pause()"


def marking(file: Path, then: str) -> list[str]:
    """Returns the command of a process that appends its id to `file` and then runs `then`."""
    mark = f"import os; open({str(file)!r}, 'a').write(f'{{os.getpid()}}\\n')"
    return [sys.executable, "-S", "-c", f"{mark}; {then}"]


def lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1] if file.exists() else []


async def marks(file: Path, count: int) -> list[int]:
    """Waits until `count` processes have started, and returns their ids."""
    async with asyncio.timeout(30):
        while len(lines(file)) < count:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)
    return [int(line) for line in lines(file)]


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_process_that_ends_is_restarted(tmp_path: Path) -> None:
    metrics = Metrics()
    supervisor = Supervisor(marking(tmp_path / "marks", STAY), metrics, restart=RestartPolicy(first_delay_s=0.01))
    task = asyncio.create_task(supervisor.run())
    [first] = await marks(tmp_path / "marks", 1)
    os.kill(first, signal.SIGKILL)
    _, second = await marks(tmp_path / "marks", 2)
    assert not is_alive(first)
    assert is_alive(second)
    await stop(task)
    assert not is_alive(second)
    assert metrics.registry.get_sample_value("zfserve_worker_restarts_total") == 1


@pytest.mark.parametrize(("stable_s", "delays"), [(60.0, [1.0, 2.0, 4.0, 5.0, 5.0]), (0.0, [1.0, 1.0, 1.0, 1.0, 1.0])])
async def test_delays_double_up_to_a_limit_and_restart_after_a_stable_run(stable_s: float, delays: list[float]) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == len(delays):
            raise asyncio.CancelledError

    supervisor = Supervisor(
        [sys.executable, "-S", "-c", ""],
        Metrics(),
        restart=RestartPolicy(first_delay_s=1.0, max_delay_s=5.0, stable_s=stable_s),
        sleep=sleep,
    )
    with pytest.raises(asyncio.CancelledError):
        await supervisor.run()
    assert slept == delays


async def test_a_process_that_does_not_answer_is_killed_and_restarted(tmp_path: Path) -> None:
    """The first probe has a longer timeout than the others."""
    timeouts: list[float] = []
    probed_again = asyncio.Event()

    async def probe(timeout_s: float) -> bool:
        timeouts.append(timeout_s)
        if len(timeouts) == 4:
            probed_again.set()
            await asyncio.Event().wait()
        await marks(tmp_path / "marks", 1)
        return len(timeouts) < 3

    supervisor = Supervisor(
        marking(tmp_path / "marks", STAY),
        Metrics(),
        restart=RestartPolicy(first_delay_s=0.01),
        probing=ProbePolicy(probe, startup_timeout_s=300.0, timeout_s=20.0, interval_s=0.0),
    )
    task = asyncio.create_task(supervisor.run())
    first, second = await marks(tmp_path / "marks", 2)
    await probed_again.wait()
    assert timeouts == [300.0, 20.0, 20.0, 300.0]
    assert not is_alive(first)
    assert is_alive(second)
    await stop(task)


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ignoring = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    command = [sys.executable, "-S", "-c", f"{ignoring}; exec({marking(tmp_path / 'marks', STAY)[3]!r})"]
    task = asyncio.create_task(Supervisor(command, Metrics(), grace_s=0.1).run())
    [process] = await marks(tmp_path / "marks", 1)
    await stop(task)
    assert not is_alive(process)


async def test_ctrl_c_does_not_reach_the_process(tmp_path: Path) -> None:
    """A terminal sends SIGINT at Ctrl-C to its whole foreground process group."""
    task = asyncio.create_task(Supervisor(marking(tmp_path / "marks", STAY), Metrics()).run())
    [process] = await marks(tmp_path / "marks", 1)
    assert os.getsid(process) != os.getsid(0)
    await stop(task)


async def test_the_process_notices_the_death_of_its_parent(tmp_path: Path) -> None:
    """The standard input of the process ends."""
    child = marking(tmp_path / "marks", "import sys; sys.stdin.read(); open(sys.argv[1], 'a').write('done\\n')")
    program = (
        "import asyncio\n"
        "from zfserve_runtime.telemetry.metrics import Metrics\n"
        "from zfserve_server.worker.supervisor import Supervisor\n"
        f"asyncio.run(Supervisor({[*child, str(tmp_path / 'ended')]!r}, Metrics()).run())"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    await marks(tmp_path / "marks", 1)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(30):
        while lines(tmp_path / "ended") != ["done"]:  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)
