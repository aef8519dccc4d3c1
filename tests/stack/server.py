"""What all servers of the stack have in common: a private folder, loopback only, and an end that comes with ours."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from demo.ports import HOST, free_ports
from demo.processes import Program, Supervisor

STOPPED, GONE = {"T", "t"}, {"Z", "X"}
START_TIMEOUT_S = 110.0  # below pytest's own time-out, so that the end of the log is seen


class Server(ABC):
    """A real server. Port and data stay the same over stops, kills and restarts; a killed owner takes it along."""

    name: ClassVar[str]
    variable: ClassVar[str]  # of the environment, where tests find its URL
    default_port: ClassVar[int]
    long_run = False  # set before it starts: it is to be fast after minutes, and not after seconds

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        self.directory = directory
        self.port = port or free_ports(1)[0]
        self._supervisor: Supervisor | None = None

    # --- what each server says about itself --------------------------------------------------------------------------

    @property
    @abstractmethod
    def url(self) -> str:
        """As the tests' environment has it, credentials and all."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What runs it, with whatever the first start has to prepare. It becomes the server in the end (exec)."""

    @abstractmethod
    def why_not_ready(self) -> str:
        """ "" once it answers in its own protocol, else the reason. Never raises."""

    def fetch(self) -> None:  # noqa: B027 - what the system provides is not fetched
        """Have its program at hand. Raises DownloadFailed."""

    def prepare(self) -> None:  # noqa: B027
        """Write its configuration; called before each start."""

    def environment(self) -> Mapping[str, str]:
        return os.environ

    # --- what can be done to it --------------------------------------------------------------------------------------

    def start(self, timeout_s: float = START_TIMEOUT_S) -> Self:
        """Start it and wait until it answers. Raises DownloadFailed, or StartFailed with the end of its log."""
        self.fetch()
        self._supervised().start(self.name)
        self.wait_ready(timeout_s)
        return self

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Raises StartFailed with the end of its log."""
        self._supervised().wait_ready(self.name, timeout_s=timeout_s)

    def stop(self) -> None:
        """Ask it to end, and wait. Its data stays."""
        self.resume()
        self._supervised().stop(self.name)

    def kill(self) -> None:
        """SIGKILL, as if its machine had died, and wait. Its data stays."""
        family = self._pause()
        self._supervised().kill(self.name)
        _signal(family, signal.SIGKILL)
        _wait_until(lambda pid: not is_running(pid), family)

    def restart(self, timeout_s: float = START_TIMEOUT_S) -> None:
        self.stop()
        self.start(timeout_s)

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and answers nothing, like a machine that hangs. Fine when it is down.

        A PostgreSQL that is paused while its owner is killed leaves its children behind, stopped: they are no group.
        """
        self._pause()

    def resume(self) -> None:
        """SIGCONT. Fine when it is down or was not paused. It may have to find its place anew, see `wait_ready`."""
        _signal(self.family(), signal.SIGCONT)

    def log_tail(self, lines: int = 20) -> str:
        return self._supervised().log_tail(self.name, lines)

    @property
    def pid(self) -> int:
        """Raises ProcessLookupError when it is down."""
        return self._supervised().pid(self.name)

    def family(self) -> list[int]:
        """The server's process and all below it; none when it is down."""
        try:
            return _with_descendants(self.pid)
        except ProcessLookupError:
            return []

    def close(self) -> None:
        """End it at once, whatever it was doing. May be called again; a start after that is a new life."""
        if self._supervisor is not None:
            self.kill()
            self._supervisor.close()
            self._supervisor = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _supervised(self) -> Supervisor:
        if self._supervisor is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            program = Program(
                self.name,
                self.command(),
                env=self.environment(),
                why_not_ready=self._why_not_ready,
                prepare=self.prepare,
                grace_s=30,
            )
            self._supervisor = Supervisor([program], self.directory)
            self._supervisor.open()
        return self._supervisor

    def _why_not_ready(self) -> str:
        return self.why_not_ready() if listens(self.port) else f"nobody listens on port {self.port}"

    def _pause(self) -> list[int]:
        """Stop all of it, also those that were born while we looked; who was stopped."""
        stopped: list[int] = []
        while set(family := self.family()) - set(stopped):
            _signal(family, signal.SIGSTOP)
            _wait_until(_is_still, family)
            stopped = family
        return stopped


def listens(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def is_running(pid: int) -> bool:
    """Not merely unburied: where nobody reaps orphans they stay as zombies."""
    return bool(_states(pid) - GONE)


def _is_still(pid: int) -> bool:
    return not _states(pid) - STOPPED - GONE


def _states(pid: int) -> set[str]:
    """Of its threads, as the kernel writes them; none when there is no such process."""
    states = set()
    for thread in Path("/proc").glob(f"{pid}/task/*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states.add(thread.read_text().rpartition(")")[2].split()[0])
    return states


def _wait_until(what: Callable[[int], bool], pids: Sequence[int], timeout_s: float = 60) -> None:
    """A signal is only sent: on a busy machine threads run on until it is their turn."""
    deadline = time.monotonic() + timeout_s
    while not all(map(what, pids)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the processes {pids} do not obey a signal")
        time.sleep(0.005)


def _with_descendants(pid: int) -> list[int]:
    """PostgreSQL's children have process groups of their own, so that a group would not do."""
    family = [pid]
    for parent in family:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            family += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return family
