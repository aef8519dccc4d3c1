"""What a fault test does to a process: where it strikes it, and its clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
LOOK: Final = """
import sys
from core import ids
from core.clock import SYSTEM_CLOCK
for _ in sys.stdin:
    print(SYSTEM_CLOCK.now_ms(), ids.uuid7_ms(ids.uuid7()), flush=True)
"""


class Process:
    """Tells what time it is, and of which time its ids are."""

    def __init__(self, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOK],
            cwd=ROOT,
            env={**os.environ, "SERVICE": "api", **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ahead_s(self) -> tuple[float, float]:
        """Of our clock: its clock, its ids. What a machine takes to answer is not ahead."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked_ms = time.time() * 1000
        print(file=self.process.stdin, flush=True)
        clock_ms, id_ms = map(int, self.process.stdout.readline().split())
        took_ms = time.time() * 1000 - asked_ms
        return (clock_ms - asked_ms - took_ms) / 1000, (id_ms - asked_ms - took_ms) / 1000

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=20)


def test_a_clock_is_wrong_by_what_the_nearest_file_says_and_ids_with_it(tmp_path: Path) -> None:
    with Process(FAILPOINTS=str(tmp_path)) as one:
        for name, wrong_s in (("clock", 3_000), ("clock.api", 6_000), (f"clock.{one.process.pid}", 9_000)):
            (tmp_path / name).write_text(str(wrong_s))
            assert one.ahead_s() == pytest.approx((wrong_s, wrong_s), abs=1_000)


def test_ids_go_on_when_the_clock_goes_back(tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("3000")
    with Process(FAILPOINTS=str(tmp_path)) as one:
        one.ahead_s()
        (tmp_path / "clock").write_text("-3000")
        clock_s, ids_s = one.ahead_s()
    assert clock_s == pytest.approx(-3_000, abs=1_000)
    assert ids_s == pytest.approx(3_000, abs=1_000), "they never fall behind those that were minted before"


WAITS: Final = """
from connectors.breaker import Rules
from messaging.services import deliver
print(Rules().open_s, deliver.PARK_AFTER_MS, deliver.PARK_FIRST_MS, deliver.EVIDENCE_WAIT_MS)
"""


@pytest.mark.parametrize(
    ("share", "told"),
    [
        pytest.param("0.5", "15.0 15000 15000 5000", id="half of them"),
        pytest.param(None, "30.0 30000 30000 10000", id="all of them unless a file says so"),
    ],
)
def test_long_waits_keep_the_share_that_a_file_says(tmp_path: Path, share: str | None, told: str) -> None:
    if share:
        (tmp_path / "waits").write_text(share)
    settings = {"DJANGO_SETTINGS_MODULE": "chat4all_project.settings", "FAILPOINTS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WAITS],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == told.split()


def test_no_file_moves_a_clock_unless_failpoints_are_on(tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("3000")
    with Process() as one:
        assert one.ahead_s() == pytest.approx((0, 0), abs=1_000)


STRIKE: Final = """
from core.failpoints import failpoint
for _ in range(2):
    failpoint("here")
"""


def test_an_armed_point_strikes_once_and_one_of_a_service_that_service_alone(tmp_path: Path) -> None:
    def ended(service: str) -> int:
        env = {**os.environ, "FAILPOINTS": str(tmp_path), "SERVICE": service}
        return subprocess.run([sys.executable, "-c", STRIKE], cwd=ROOT, env=env, check=False).returncode

    (tmp_path / "here").write_text("kill")
    assert [ended("bridge"), ended("bridge")] == [-signal.SIGKILL, 0]
    (tmp_path / "here.api").write_text("kill")
    assert [ended("bridge"), ended("api"), ended("api")] == [0, -signal.SIGKILL, 0]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["here.api.struck", "here.struck"]
