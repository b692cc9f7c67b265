"""Two processes that train together, forked from this one, so that each costs a fraction of a second to start."""

import os
import select
import signal
import socket
import time
from collections.abc import Callable

from accelerate.state import AcceleratorState


KILLED, DONE, STOPPED = -signal.SIGKILL, 0, 128 + signal.SIGTERM
PATIENCE = 15.0
"""Seconds that a process has, after the other one is dead, to notice; then it is killed, as launchers do."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(rank: int, port: int, function: Callable[[int], object]) -> None:
    """Runs `function` as process `rank` of two, and ends this process."""
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        AcceleratorState._reset_state(True)
        function(rank)
        status = 0
    except SystemExit as error:
        status = error.code
    finally:
        os._exit(status)


def together(
    function: Callable[[int], object], disturb: Callable[[list[int]], object] = lambda processes: None
) -> tuple[int, int]:
    """Runs `function(rank)` in two processes, to which `disturb` may do something; returns how they ended.

    When one of them dies, the other is told to stop and, after a while, killed, as launchers do.
    """
    port, processes = free_port(), []
    for rank in range(2):
        process = os.fork()
        if process == 0:
            _run(rank, port, function)
        processes.append(process)
    watched = {os.pidfd_open(process): rank for rank, process in enumerate(processes)}
    try:
        disturb(processes)
        statuses, deadline = {}, None
        while watched:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            ready = select.select(list(watched), [], [], left)[0]
            if not ready:
                for rank in watched.values():
                    os.kill(processes[rank], signal.SIGKILL)
                deadline = None
            for handle in ready:
                rank = watched.pop(handle)
                os.close(handle)
                statuses[rank] = os.waitstatus_to_exitcode(os.waitpid(processes[rank], 0)[1])
                if watched and statuses[rank] != DONE:
                    os.kill(processes[1 - rank], signal.SIGTERM)
                    deadline = time.monotonic() + PATIENCE
        return statuses[0], statuses[1]
    finally:
        for handle, rank in watched.items():
            os.kill(processes[rank], signal.SIGKILL)
            os.waitpid(processes[rank], 0)
            os.close(handle)
