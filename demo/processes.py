"""Runs a table of programs: in stages, each stage ready before the next; stopped in reverse; none left behind.

Why not honcho: it starts all at once, knows no readiness, stops everything when one ends, costs a second Python process
per program, and leaves all of them running when it is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from demo.watchdog import signal_group

# The program waits for a word from us before it becomes itself: not before the watchdog knows its group.
_GATE: Final = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")
_POLL_S: Final = 0.05
_MAX_LOG_BYTES: Final = 64 * 1024 * 1024
_FIRST_BACKOFF_S: Final = 0.5
_MAX_BACKOFF_S: Final = 15.0
_STABLE_S: Final = 60.0  # who ran that long starts over with the first backoff
_LOCK_WAIT_S: Final = 15.0  # how long the watchdog of a killed supervisor may need to clear up


class StartFailed(RuntimeError):
    """A part did not come up; the text holds the reason and the end of its log."""


class StillRunning(RuntimeError):
    """Another supervisor uses this folder."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process of the table. ``why_not_ready`` answers "" once it serves, else the reason, and never raises."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    stage: int = 0
    why_not_ready: Callable[[], str] = lambda: ""
    prepare: Callable[[], None] = lambda: None  # before each start
    grace_s: float = 10.0  # from SIGTERM to SIGKILL


@dataclass(slots=True)
class _Run:
    """A program's life under a supervisor."""

    program: Program
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False  # False: its end is no crash
    started_at_s: float = 0.0
    crashes: int = 0
    restart_at_s: float | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass(frozen=True, slots=True)
class Crash:
    """A program ended by itself. ``code`` is negative for a signal, as in subprocess."""

    name: str
    code: int
    log_tail: str = field(repr=False)
    restart_in_s: float | None

    def __str__(self) -> str:
        how = signal.Signals(-self.code).name if self.code < 0 else f"code {self.code}"
        then = f"starting it again in {self.restart_in_s:g} s" if self.restart_in_s is not None else "it stays down"
        return f"{self.name} ended ({how}); {then}. The end of its log:\n{self.log_tail}"


def print_crash(crash: Crash) -> None:
    print(crash, file=sys.stderr, flush=True)


class Supervisor:
    """Starts, watches and stops programs; their output goes to ``folder/logs/<name>.log``.

    Every method may be called from any thread. ``folder`` belongs to one supervisor at a time.
    """

    def __init__(
        self,
        programs: Iterable[Program],
        folder: Path,
        *,
        restart: bool = False,
        on_crash: Callable[[Crash], None] = print_crash,
    ) -> None:
        self._runs = {program.name: _Run(program) for program in programs}
        self._logs = folder / "logs"
        self._lock_path = folder / "supervisor.lock"
        self._restart_crashed = restart
        self._on_crash = on_crash
        self._lock = threading.RLock()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._monitor: threading.Thread | None = None

    # --- the whole table -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the folder and start watching. Raises StillRunning."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._taken_folder() as descriptor:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("watchdog.py"))],
                stdin=subprocess.PIPE,
                pass_fds=[descriptor],  # holds the folder until the last program is gone, whatever becomes of us
                start_new_session=True,
            )
        self._closing.clear()
        self._monitor = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._monitor.start()

    def start_stage(self, stage: int, *, timeout_s: float) -> None:
        """Start all programs of a stage and wait until they are ready. Raises StartFailed."""
        names = [run.program.name for run in self._runs.values() if run.program.stage == stage]
        for name in names:
            self.start(name)
        deadline = time.monotonic() + timeout_s
        for name in names:
            self.wait_ready(name, timeout_s=deadline - time.monotonic())

    @property
    def stages(self) -> list[int]:
        return sorted({run.program.stage for run in self._runs.values()})

    def close(self) -> None:
        """Stop all, the last stage first, and let the folder go. May be called again."""
        self._closing.set()
        if self._monitor is not None and self._monitor is not threading.current_thread():
            self._monitor.join()
        for stage in reversed(self.stages):
            self._stop([run for run in self._runs.values() if run.program.stage == stage])
        if self._watchdog is not None and self._watchdog.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None

    # --- one program ---------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start it unless it runs; returns before it is ready."""
        run = self._runs[name]
        with self._lock:
            if run.is_running:
                return
            self._reap(run)
            run.program.prepare()
            run.process = self._spawn(run.program)
            run.wanted, run.started_at_s, run.restart_at_s = True, time.monotonic(), None

    def wait_ready(self, name: str, *, timeout_s: float) -> None:
        """Raises StartFailed when it ends, or is not ready in time."""
        run = self._runs[name]
        deadline = time.monotonic() + timeout_s
        while reason := self._why_not_ready(run):
            ended = not run.is_running
            if ended or time.monotonic() > deadline:
                how = "ended" if ended else f"is not ready after {timeout_s:.0f} s ({reason})"
                raise StartFailed(f"{name} {how}. The end of its log:\n{self.log_tail(name)}")
            time.sleep(_POLL_S)

    def stop(self, name: str) -> None:
        """SIGTERM, SIGKILL after its grace, and wait; nothing of its process group is left."""
        self._stop([self._runs[name]])

    def kill(self, name: str, *, alone: bool = False) -> None:
        """SIGKILL it and its children, as if its machine died, and wait. It stays down until started; where it dies
        ``alone``, its children live on until then."""
        with self._lock:
            run = self._runs[name]
            run.wanted, run.restart_at_s = False, None
            if not alone:
                self._reap(run)
            elif run.process is not None:
                run.process.kill()
                run.process.wait()

    def restart(self, name: str, *, timeout_s: float) -> None:
        self.stop(name)
        self.start(name)
        self.wait_ready(name, timeout_s=timeout_s)

    def signal(self, name: str, number: signal.Signals) -> None:
        """To the program alone, not to its children."""
        os.kill(self.pid(name), number)

    def pid(self, name: str) -> int:
        """Raises ProcessLookupError when it is down."""
        process = self._runs[name].process
        if process is None or process.poll() is not None:
            raise ProcessLookupError(f"{name} is not running")
        return process.pid

    def is_running(self, name: str) -> bool:
        return self._runs[name].is_running

    def log_path(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def log_tail(self, name: str, lines: int = 20) -> str:
        """The last lines that it printed."""
        try:
            with self.log_path(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 64 * 1024))
                return "\n".join(deque(log.read().decode(errors="replace").splitlines(), maxlen=lines))
        except FileNotFoundError:
            return ""

    # --- inside --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _taken_folder(self) -> Iterator[int]:
        """An open file that holds the folder's lock; who inherits it goes on holding it."""
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._lock_folder(descriptor)
            os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _lock_folder(self, descriptor: int) -> None:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = int(os.pread(descriptor, 20, 0) or b"0")
                if _exists(holder) or time.monotonic() > deadline:
                    raise StillRunning(
                        f"{self._lock_path.parent} is in use by process {holder}: stop that one first, "
                        f"or give this one a folder of its own with STATE_DIR=…"
                    ) from None
                time.sleep(_POLL_S)

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        with self.log_path(program.name).open("ab") as log:
            process = subprocess.Popen(
                [*_GATE, *program.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(program.env),
                start_new_session=True,  # Ctrl-C in the terminal is for us alone
            )
        self._tell_watchdog(f"+{process.pid}")
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin as gate:
                gate.write(b"go\n")
        return process

    def _tell_watchdog(self, line: str) -> None:
        if self._watchdog is None or self._watchdog.stdin is None:
            raise RuntimeError("open() comes first")
        with contextlib.suppress(BrokenPipeError):  # somebody killed it: we can still clear up after ourselves
            self._watchdog.stdin.write(f"{line}\n".encode())
            self._watchdog.stdin.flush()

    def _why_not_ready(self, run: _Run) -> str:
        return run.program.why_not_ready() if run.is_running else "it is not running"

    def _stop(self, runs: Sequence[_Run]) -> None:
        with self._lock:
            for run in runs:
                run.wanted, run.restart_at_s = False, None
                if run.is_running and run.process is not None:
                    run.process.terminate()
        started_s = time.monotonic()
        for run in runs:
            if run.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    run.process.wait(max(0.0, started_s + run.program.grace_s - time.monotonic()))
        with self._lock:
            for run in runs:
                self._reap(run)

    def _reap(self, run: _Run) -> None:
        """Leave nothing of its group: a leader that died may have children that still hold its port."""
        if run.process is None:
            return
        signal_group(run.process.pid, signal.SIGKILL)
        run.process.wait()
        self._tell_watchdog(f"-{run.process.pid}")
        run.process = None

    def _watch(self) -> None:
        while not self._closing.wait(_POLL_S):
            for run in self._runs.values():
                with self._lock:
                    crash = self._look_at(run)
                if crash is not None:
                    self._on_crash(crash)
                self._bound_log(run.program.name)

    def _look_at(self, run: _Run) -> Crash | None:
        """Restart it when its time has come; a crash when it has just ended by itself."""
        if run.restart_at_s is not None and time.monotonic() >= run.restart_at_s:
            self.start(run.program.name)
        if not run.wanted or run.process is None or (code := run.process.poll()) is None:
            return None
        run.wanted = False
        self._reap(run)
        delay_s = self._schedule_restart(run) if self._restart_crashed else None
        return Crash(run.program.name, code, self.log_tail(run.program.name), delay_s)

    def _schedule_restart(self, run: _Run) -> float:
        now_s = time.monotonic()
        run.crashes = 1 if now_s - run.started_at_s > _STABLE_S else run.crashes + 1
        delay_s = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** (run.crashes - 1))
        run.restart_at_s = now_s + delay_s
        return delay_s

    def _bound_log(self, name: str) -> None:
        """A demo that stays up for weeks must not fill the disk: the file is emptied (programs append to its end)."""
        with contextlib.suppress(FileNotFoundError):
            path = self.log_path(name)
            if path.stat().st_size > _MAX_LOG_BYTES:
                path.with_suffix(".log.1").write_bytes(path.read_bytes())
                os.truncate(path, 0)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
