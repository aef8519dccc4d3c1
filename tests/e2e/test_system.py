"""The whole local profile as processes: it comes up, tells how it is, survives a restart of its parts, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import httpx
import pytest

from demo.ports import Ports
from demo.supervisor import LocalSystem

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
SERVICES = (
    "api",
    "gateway",
    "bridge",
    "worker-core",
    "worker-inbound",
    "worker-whatsapp",
    "worker-instagram",
    "simulator",
)


def group_members(leader: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # gone meanwhile
            continue
        if int(group) == leader and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def until(line: str, output: IO[str]) -> str:
    """What was printed up to that line."""
    printed = []
    for each in output:
        printed.append(each)
        if each.strip() == line:
            return "".join(printed)
    pytest.fail(f"ended without {line!r}: {''.join(printed)}")


@pytest.mark.parametrize("name", SERVICES)
def test_every_part_says_that_it_is_ready(system: LocalSystem, name: str) -> None:
    assert httpx.get(system.ready_url(name)).status_code == 200


def test_no_part_has_crashed_on_the_way(system: LocalSystem) -> None:
    assert [name for name in system.processes if not system.is_running(name)] == []
    assert [
        line for name in system.processes for line in system.log_tail(name, 200).splitlines() if _is_crash(line)
    ] == []


def _is_crash(line: str) -> bool:
    """What nobody foresaw: what waits for a part that is away says so with a warning, and why."""
    return "Traceback" in line and '"level":"WARNING"' not in line


def test_an_operator_may_sign_in_to_the_admin(system: LocalSystem) -> None:
    with httpx.Client(base_url=system.api_url, follow_redirects=True) as browser:
        browser.get("/admin/login/")
        answer = browser.post(
            "/admin/login/?next=/admin/",
            data={**system.operator, "csrfmiddlewaretoken": browser.cookies["csrftoken"]},
            headers={"Referer": f"{system.api_url}/admin/login/"},
        )
    assert answer.status_code == 200
    assert "Site administration" in answer.text


@pytest.mark.parametrize("name", ["api", "gateway", "worker-core", "bridge"])
def test_a_part_that_was_killed_comes_back_on_its_port(system: LocalSystem, name: str) -> None:
    leader = system.pid(name)
    system.kill(name)
    with pytest.raises(httpx.TransportError):
        httpx.get(system.ready_url(name))
    assert group_members(leader) == []
    system.restart(name)
    assert httpx.get(system.ready_url(name)).status_code == 200


def test_ctrl_c_ends_every_process_cleanly_and_the_next_start_goes_on(tmp_path: Path) -> None:
    ports = Ports.free()
    environment = {**os.environ, **ports.environment(), "STATE_DIR": str(tmp_path)}
    operators = set()
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-m", "demo.supervisor"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            printed = until("Ctrl-C stops it.", process.stdout)
            assert f"http://127.0.0.1:{ports.api}/console" in printed
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        ports.check_free()
        operators.add((tmp_path / "operator.json").read_text())
    assert len(operators) == 1
