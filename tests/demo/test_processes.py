"""The supervisor on small real programs: order, readiness, crashes, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.processes import Crash, Program, StartFailed, StillRunning, Supervisor

TIMEOUT_S = 20.0
ROOT = Path(__file__).resolve().parents[2]

# Writes "<name> up" into the journal when it serves and "<name> down" when it was asked to stop.
SERVER = """
    import signal, sys, time
    name, journal = sys.argv[1:]
    def note(what):
        with open(journal, "a") as file:
            file.write(f"{name} {what}\\n")
    def stop(*_):
        note("down")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    note("up")
    print(f"hello from {name}", flush=True)
    while True:
        time.sleep(60)
"""
DEAF = """
    import signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(sys.argv[1], "w").close()
    while True:
        time.sleep(60)
"""
PARENT = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(str(child.pid))
    import os
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(600)
"""


def python(source: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(source), *map(str, arguments))


def eventually(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < deadline, f"not within {TIMEOUT_S} s"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Running, not merely unburied: where nobody reaps orphans they stay as zombies."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Journal:
    """What the servers noted, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def server(self, name: str, stage: int = 0) -> Program:
        return Program(
            name,
            python(SERVER, name, self.path),
            stage=stage,
            why_not_ready=lambda: "" if f"{name} up" in self.lines() else "not up yet",
        )


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Makes open supervisors that are closed after the test."""
    made: list[Supervisor] = []

    def make(*programs: Program, folder: Path = tmp_path, **options: object) -> Supervisor:
        supervisor = Supervisor(programs, folder, **options)  # type: ignore[arg-type]
        supervisor.open()
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        supervisor.close()


def test_a_stage_starts_when_the_one_before_is_ready_and_stops_before_it(
    supervise: Callable[..., Supervisor], journal: Journal
) -> None:
    supervisor = supervise(journal.server("late", 2), journal.server("early", 0), journal.server("middle", 1))
    for stage in supervisor.stages:
        supervisor.start_stage(stage, timeout_s=TIMEOUT_S)
    assert journal.lines() == ["early up", "middle up", "late up"]
    supervisor.close()
    assert journal.lines()[3:] == ["late down", "middle down", "early down"]


def test_output_goes_to_a_file_of_each_program(supervise: Callable[..., Supervisor], journal: Journal) -> None:
    supervisor = supervise(journal.server("one"), journal.server("two"))
    supervisor.start_stage(0, timeout_s=TIMEOUT_S)
    eventually(lambda: supervisor.log_tail("one") == "hello from one")
    eventually(lambda: supervisor.log_tail("two") == "hello from two")


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    mark = tmp_path / "deaf"
    deaf = Program(
        "deaf", python(DEAF, mark), grace_s=0.2, why_not_ready=lambda: "" if mark.exists() else "not deaf yet"
    )
    supervisor = supervise(deaf)
    supervisor.start_stage(0, timeout_s=TIMEOUT_S)
    pid = supervisor.pid("deaf")
    supervisor.stop("deaf")
    assert not is_alive(pid)


@pytest.mark.parametrize("end", ["stop", "kill", "close"])
def test_children_of_a_program_end_with_it(supervise: Callable[..., Supervisor], tmp_path: Path, end: str) -> None:
    mark = tmp_path / "child"
    supervisor = supervise(Program("parent", python(PARENT, mark)))
    supervisor.start("parent")
    eventually(mark.exists)
    child = int(mark.read_text())
    assert is_alive(child)
    supervisor.close() if end == "close" else getattr(supervisor, end)("parent")
    eventually(lambda: not is_alive(child))


def test_children_of_a_program_that_is_killed_alone_live_until_it_is_started_again(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    mark, crashes = tmp_path / "child", []  # type: tuple[Path, list[Crash]]
    supervisor = supervise(Program("parent", python(PARENT, mark)), on_crash=crashes.append)
    supervisor.start("parent")
    eventually(mark.exists)
    parent, child = supervisor.pid("parent"), int(mark.read_text())
    supervisor.kill("parent", alone=True)
    assert not is_alive(parent)
    assert not supervisor.is_running("parent")
    assert is_alive(child)
    supervisor.start("parent")
    eventually(lambda: not is_alive(child))
    assert crashes == []


def test_children_of_a_program_that_crashed_end_too(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    mark = tmp_path / "child"
    crashes: list[Crash] = []
    supervisor = supervise(Program("parent", python(PARENT, mark)), on_crash=crashes.append)
    supervisor.start("parent")
    eventually(mark.exists)
    supervisor.signal("parent", signal.SIGKILL)
    eventually(lambda: crashes)
    eventually(lambda: not is_alive(int(mark.read_text())))


def test_a_program_that_does_not_come_up_is_told_with_the_end_of_its_log(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise(
        Program("broken", python("raise SystemExit('no database')"), why_not_ready=lambda: "never"),
        on_crash=lambda _: None,
    )
    with pytest.raises(StartFailed, match=r"(?s)broken ended.*no database"):
        supervisor.start_stage(0, timeout_s=TIMEOUT_S)


def test_a_program_that_is_never_ready_is_told_with_its_reason(
    supervise: Callable[..., Supervisor],
) -> None:
    supervisor = supervise(
        Program("slow", python("import time; time.sleep(600)"), why_not_ready=lambda: "503: the store is away")
    )
    with pytest.raises(StartFailed, match=r"slow is not ready .*503: the store is away"):
        supervisor.start_stage(0, timeout_s=0.1)


def test_a_command_that_does_not_exist_is_told(supervise: Callable[..., Supervisor]) -> None:
    supervisor = supervise(
        Program("typo", ("/no/such/program",), why_not_ready=lambda: "never"), on_crash=lambda _: None
    )
    with pytest.raises(StartFailed, match="/no/such/program"):
        supervisor.start_stage(0, timeout_s=TIMEOUT_S)


def test_a_crash_is_reported_with_its_signal_and_stays_down(
    supervise: Callable[..., Supervisor], journal: Journal
) -> None:
    crashes: list[Crash] = []
    supervisor = supervise(journal.server("victim"), on_crash=crashes.append)
    supervisor.start_stage(0, timeout_s=TIMEOUT_S)
    eventually(lambda: supervisor.log_tail("victim"))
    supervisor.signal("victim", signal.SIGKILL)
    eventually(lambda: crashes)
    assert str(crashes[0]) == ("victim ended (SIGKILL); it stays down. The end of its log:\nhello from victim")
    assert not supervisor.is_running("victim")


def test_a_crashed_program_is_started_again_with_a_growing_delay(supervise: Callable[..., Supervisor]) -> None:
    crashes: list[Crash] = []
    supervisor = supervise(Program("crasher", python("raise SystemExit(3)")), restart=True, on_crash=crashes.append)
    supervisor.start("crasher")
    eventually(lambda: len(crashes) >= 3)
    assert [crash.code for crash in crashes[:3]] == [3, 3, 3]
    assert [crash.restart_in_s for crash in crashes[:3]] == [0.5, 1.0, 2.0]


def test_what_was_stopped_or_killed_on_purpose_is_no_crash_and_stays_down(
    supervise: Callable[..., Supervisor], journal: Journal
) -> None:
    crashes: list[Crash] = []
    supervisor = supervise(
        journal.server("stopped"), journal.server("killed"), journal.server("witness"), restart=True,
        on_crash=crashes.append,
    )  # fmt: skip
    supervisor.start_stage(0, timeout_s=TIMEOUT_S)
    supervisor.stop("stopped")
    supervisor.kill("killed")
    supervisor.signal("witness", signal.SIGKILL)  # the watcher has been around once it saw this one
    eventually(lambda: crashes)
    assert [crash.name for crash in crashes] == ["witness"]
    assert not supervisor.is_running("stopped")
    assert not supervisor.is_running("killed")


def test_a_restart_gives_a_new_process_and_waits_until_it_is_ready(
    supervise: Callable[..., Supervisor], journal: Journal
) -> None:
    supervisor = supervise(journal.server("one"))
    supervisor.start_stage(0, timeout_s=TIMEOUT_S)
    before = supervisor.pid("one")
    supervisor.restart("one", timeout_s=TIMEOUT_S)
    assert supervisor.pid("one") != before
    supervisor.kill("one")
    with pytest.raises(ProcessLookupError):
        supervisor.pid("one")


def test_programs_do_not_get_the_environment_of_the_shell(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://somebody-elses")
    show = Program("show", python("import os; print(sorted(os.environ))"), env={"MINE": "1"})
    supervisor = supervise(show, on_crash=lambda _: None)
    supervisor.start("show")
    eventually(lambda: "MINE" in supervisor.log_tail("show"))
    assert "DATABASE_URL" not in supervisor.log_tail("show")


def test_a_log_that_grew_too_large_is_emptied_and_kept_once(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demo.processes._MAX_LOG_BYTES", 1000)
    chatter = "import time\nprint('x' * 2000, flush=True)\ntime.sleep(600)"
    supervisor = supervise(Program("chatter", python(chatter)))
    supervisor.start("chatter")
    path = supervisor.log_path("chatter")
    eventually(lambda: path.with_suffix(".log.1").exists() and path.stat().st_size == 0)


def test_a_folder_belongs_to_one_supervisor(supervise: Callable[..., Supervisor], journal: Journal) -> None:
    first = supervise(journal.server("one"))
    with pytest.raises(StillRunning, match=f"in use by process {os.getpid()}"):
        supervise(journal.server("two"))
    first.close()
    supervise(journal.server("two")).start_stage(0, timeout_s=TIMEOUT_S)


SUPERVISOR_TO_KILL = """
    import sys, threading
    from pathlib import Path
    from demo.processes import Program, Supervisor
    folder, *commands = sys.argv[1:]
    mark = str(Path(folder) / "child")
    supervisor = Supervisor([
        Program("deaf", [sys.executable, "-c", commands[0], str(Path(folder) / "deaf")]),
        Program("parent", [sys.executable, "-c", commands[1], mark]),
    ], Path(folder))
    supervisor.open()
    supervisor.start_stage(0, timeout_s=20)
    print(supervisor.pid("deaf"), supervisor.pid("parent"), flush=True)
    threading.Event().wait()
"""


def test_nothing_outlives_a_supervisor_that_was_killed(tmp_path: Path, supervise: Callable[..., Supervisor]) -> None:
    """Not a program that ignores SIGTERM, and not a child of a program; then the folder is free again."""
    command = python(SUPERVISOR_TO_KILL, tmp_path, textwrap.dedent(DEAF), textwrap.dedent(PARENT))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(pid) for pid in supervisor.stdout.readline().split()]
        eventually(lambda: (tmp_path / "child").exists() and (tmp_path / "deaf").exists())
        pids.append(int((tmp_path / "child").read_text()))
        assert all(map(is_alive, pids))
        supervisor.kill()
    supervise()  # waits until the folder is let go
    assert not any(map(is_alive, pids))


def test_a_program_whose_supervisor_died_before_it_began_never_begins(tmp_path: Path) -> None:
    """The gate: without the word from the supervisor a program does not become itself."""
    from demo.processes import _GATE

    mark = tmp_path / "began"
    program = subprocess.Popen([*_GATE, "touch", str(mark)], stdin=subprocess.PIPE)
    assert program.stdin is not None
    program.stdin.close()
    assert program.wait(TIMEOUT_S) != 0
    assert not mark.exists()


def test_close_may_be_called_twice_and_from_a_crash_report(
    supervise: Callable[..., Supervisor], journal: Journal
) -> None:
    closed = threading.Event()

    def close(_: Crash) -> None:
        supervisor.close()
        closed.set()

    supervisor = supervise(journal.server("one"), journal.server("two"), on_crash=close)
    supervisor.start_stage(0, timeout_s=TIMEOUT_S)
    supervisor.signal("one", signal.SIGKILL)
    assert closed.wait(TIMEOUT_S)
    assert not supervisor.is_running("two")
    supervisor.close()
