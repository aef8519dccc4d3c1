"""`python -m tests.stack`: a command among real servers, and nothing left of them however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stack.announcement import announced
from tests.stack.scratch import scratch_directory
from tests.stack.server import is_running
from tests.stack.servers import needed
from tests.stack.stack import KINDS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.xdist_group("stack")]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60.0


@pytest.fixture
def scene() -> Iterator[Scene]:
    needed("s3")
    with scratch_directory() as folder:
        yield Scene(folder)


class Scene:
    """Stacks in a temporary folder of the test's own, that know of no other stack."""

    def __init__(self, folder: Path) -> None:
        self.temp = folder / "temp"
        self.announcement = folder / "stack.env"
        self.temp.mkdir(0o711)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TEST_")},
            "TMPDIR": str(self.temp),
            "STACK_ENV": str(self.announcement),
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (sys.executable, "-m", "tests.stack", *arguments),
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    @contextmanager
    def started(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """In a session of its own, as a terminal would have it, so that its signals do not reach us."""
        process = subprocess.Popen(
            (sys.executable, "-m", "tests.stack", *arguments),
            cwd=ROOT,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def processes(self) -> dict[int, str]:
        """Who works in this folder or was told about it."""
        return {
            int(process.name): said
            for process in Path("/proc").glob("[0-9]*")
            if (said := _said(process, str(self.temp))) and int(process.name) != os.getpid()
        }


def _said(process: Path, folder: str) -> str:
    """Its command line when it has to do with the folder, else nothing."""
    try:
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        at = str((process / "cwd").readlink())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
    return command if folder in command or at.startswith(folder) else ""


def eventually(what: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


def test_a_command_finds_its_servers_and_its_exit_code_is_ours(scene: Scene) -> None:
    done = scene.run("run", "--only", "minio,redis", "--", "sh", "-c", "echo $TEST_S3_URL $TEST_REDIS_URL; exit 7")
    assert done.returncode == 7
    s3, redis = done.stdout.split()
    assert s3.startswith("http://")
    assert redis.startswith("redis://127.0.0.1:")
    assert scene.processes() == {}
    assert list(scene.temp.iterdir()) == []


def test_a_command_that_a_signal_ended_gives_the_code_that_a_shell_gives(scene: Scene) -> None:
    assert scene.run("run", "--only", "redis", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_a_command_that_is_not_there_is_named(scene: Scene) -> None:
    done = scene.run("run", "--only", "redis", "--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


def test_a_server_that_is_known_is_not_started_again(scene: Scene) -> None:
    done = scene.run("run", "--only", "redis", "--", "sh", "-c", "echo $TEST_REDIS_URL", TEST_REDIS_URL="redis://there")
    assert done.stdout.split() == ["redis://there"]
    assert "ready" not in done.stderr


def test_reuse_starts_nothing(scene: Scene) -> None:
    done = scene.run("run", "--reuse", "--", "sh", "-c", "echo none: $TEST_S3_URL$TEST_REDIS_URL")
    assert done.stdout.split() == ["none:"]


def test_an_unknown_server_is_refused_with_the_known_ones(scene: Scene) -> None:
    done = scene.run("run", "--only", "oracle", "--", "true")
    assert done.returncode == 2
    assert "'oracle' is none of kafka, cassandra, minio, postgres, redis" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_to_the_command_and_the_servers_end_after_it(scene: Scene, number: signal.Signals) -> None:
    script = "import os, signal, sys, time\n"
    script += f"signal.signal({int(number)}, lambda *_: (os.kill(int(sys.argv[1]), 0), sys.exit(5)))\n"
    script += "print('here', flush=True)\nwhile True: time.sleep(60)"
    with scene.started(
        "run", "--only", "redis,postgres", "--", "sh", "-c", f'exec {sys.executable} -c "$0" $PPID', script
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert scene.processes()
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == 5
    assert scene.processes() == {}
    assert list(scene.temp.iterdir()) == []


def test_a_signal_while_the_servers_start_ends_them(scene: Scene) -> None:
    with scene.started("run", "--only", "kafka,cassandra", "--", "true") as process:
        eventually(lambda: [said.split()[0][-4:] for said in scene.processes().values()].count("java") == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert scene.processes() == {}
    assert list(scene.temp.iterdir()) == []


def test_nothing_is_left_when_it_is_killed(scene: Scene) -> None:
    with scene.started("run", "--", "true") as process:
        eventually(lambda: len(scene.processes()) >= len(KINDS))  # it waits for all of them
        process.kill()
        eventually(lambda: not scene.processes(), 20)
    with scene.started(
        *("run", "--only", "redis", "--", "sh", "-c"),
        f"echo $$; exec {sys.executable} -c 'import time; time.sleep(600)'",
    ) as process:
        assert process.stdout is not None
        command = int(process.stdout.readline())
        process.kill()
        eventually(lambda: not scene.processes(), 20)
        eventually(lambda: not is_running(command))
    assert list(scene.temp.iterdir()) != []
    scene.run("run", "--only", "", "--", "true")
    assert list(scene.temp.iterdir()) == [], "the next of us removes the data that was left"


def test_a_stack_that_is_up_is_announced_until_it_ends(scene: Scene) -> None:
    assert announced(scene.announcement) == {}
    with scene.started("up", "--only", "redis,minio") as process:
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(2)]
        eventually(lambda: announced(scene.announcement))
        known = announced(scene.announcement)
        assert set(printed) <= set(scene.announcement.read_text().splitlines(keepends=True))

        inside = scene.run("run", "--only", "redis,minio", "--", "sh", "-c", "echo $TEST_S3_URL $TEST_REDIS_URL")
        assert inside.stdout.split() == [known["TEST_S3_URL"], known["TEST_REDIS_URL"]]
        assert "ready" not in inside.stderr, "no second stack"

        second = scene.run("up")
        assert second.returncode == 1
        assert f"up already; {scene.announcement} says where" in second.stderr

        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
    assert announced(scene.announcement) == {}
    assert scene.processes() == {}


def test_a_stack_that_was_killed_is_announced_no_more(scene: Scene) -> None:
    with scene.started("up", "--only", "redis") as process:
        eventually(lambda: announced(scene.announcement))
        process.kill()
        process.wait()
        assert scene.announcement.read_text() != ""
        assert announced(scene.announcement) == {}
