"""`python -m demo` as people and machines start it: whole, interrupted, broken on purpose."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from demo.channels import ACCOUNT_IDS
from demo.people import MARIA, sign_in_all
from demo.ports import Ports
from demo.scenes import AMONG_USERS, JOHNS, MARIAS
from demo.supervisor import LocalSystem, connected_system
from tests.demo.test_processes import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400), pytest.mark.xdist_group("system")]

ROOT = Path(__file__).resolve().parents[2]
DONE_S = 240
ALL_FINE = "lost: 0   late (over 30 s): 0   twice: 0   scenes broken off: 0"
AMONG = sum(len(lines.lines) for _, _, lines in AMONG_USERS) + 1  # and a file
TO_MARIA, FROM_MARIA = len(MARIAS.lines[1::2]) + 1, len(MARIAS.lines[::2])  # a picture goes out
TO_JOHN, FROM_JOHN = len(JOHNS.lines[1::2]), len(JOHNS.lines[::2]) + 1  # a picture comes in


@contextmanager
def demo(state_dir: Path, ports: Ports, *options: str, once: bool = True) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, **ports.environment(), "STATE_DIR": str(state_dir), "DEMO": "once" if once else ""}
    command = [sys.executable, "-m", "demo", *options]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=DONE_S)
    return process.returncode, printed


def read_until(pattern: str, process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if re.search(pattern, line):
            return "".join(printed)
    pytest.fail(f"ended without {pattern!r}:\n{''.join(printed)}")


def processes_of(state_dir: Path) -> list[str]:
    """What still runs with this folder as its state."""
    wanted = f"STATE_DIR={state_dir}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # gone meanwhile, or somebody else's
            continue
    return found


def secrets_of(state_dir: Path) -> list[str]:
    users = json.loads((state_dir / "demo.json").read_text())["users"].values()
    accounts = json.loads((state_dir / "channels.json").read_text())
    names = ("access_token", "app_secret", "verify_token")
    return [user["password"] for user in users] + [account[name] for account in accounts for name in names]


def numbers(channel: str, printed: str) -> dict[str, str]:
    line = next(line for line in printed.splitlines() if re.match(rf"  {channel} .*accepted", line))
    return dict(re.findall(r"(accepted|stored|at platform|delivered|read|replies in|files) (\S+?)(?:,|$)", line))


def test_everything_arrives_and_the_system_stays_up_until_ctrl_c(tmp_path: Path) -> None:
    ports = Ports.free()
    with demo(tmp_path, ports, once=False) as process:
        printed = read_until("Ctrl-C stops it", process)
        assert ALL_FINE in printed
        assert numbers("Chat4All", printed) == {
            **dict.fromkeys(("accepted", "stored", "delivered", "read"), f"{AMONG}"),
            **dict.fromkeys(("at platform", "replies in"), "-"),
            "files": "1",
        }
        assert numbers("WhatsApp", printed) == {
            **dict.fromkeys(("accepted", "stored", "at platform", "delivered", "read"), f"{TO_MARIA}"),
            "replies in": f"{FROM_MARIA}",
            "files": "1",
        }
        assert numbers("Instagram", printed) == {
            **dict.fromkeys(("accepted", "stored", "at platform", "read"), f"{TO_JOHN}"),
            "delivered": "-",
            "replies in": f"{FROM_JOHN}",
            "files": "1",
        }
        for address in ("/console", "/docs", "/admin/"):
            assert f"http://127.0.0.1:{ports.api}{address}" in printed
            assert httpx.get(f"http://127.0.0.1:{ports.api}{address}", follow_redirects=True).status_code == 200
        assert not [secret for secret in secrets_of(tmp_path) if secret in printed]
        assert_the_printed_sign_in_works(tmp_path, ports)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert processes_of(tmp_path) == []
    ports.check_free()


def assert_the_printed_sign_in_works(state_dir: Path, ports: Ports) -> None:
    path = state_dir / "demo.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for login in json.loads(path.read_text())["users"].values():
        assert httpx.post(f"http://127.0.0.1:{ports.api}/auth/token", json=login).status_code == 200


@pytest.mark.cluster
def test_the_same_conversation_is_lost_nowhere_on_the_cluster_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.rooms import clear, shared_servers  # the drivers take a second to import

    servers = shared_servers()
    monkeypatch.setenv("PROFILE", "cluster")
    with demo(tmp_path, Ports.free()) as process:
        code, printed = finished(process)
    assert ALL_FINE in printed
    assert code == 0
    assert numbers("WhatsApp", printed)["read"] == f"{TO_MARIA}"
    assert not (tmp_path / "redis-log").exists()
    assert processes_of(tmp_path) == []
    clear(servers, json.loads((tmp_path / "cluster.json").read_text())["name"])


def test_after_ctrl_c_in_the_middle_nothing_runs_and_the_next_run_counts_only_its_own(tmp_path: Path) -> None:
    ports = Ports.free()
    with demo(tmp_path, ports) as process:
        read_until("Instagram .* ACCEPTED", process)
        process.send_signal(signal.SIGINT)
        code, printed = finished(process)
        assert code == 130
        assert "Traceback" not in printed
    eventually(lambda: processes_of(tmp_path) == [])
    with demo(tmp_path, ports) as process:
        code, printed = finished(process)
    assert ALL_FINE in printed
    assert code == 0
    assert processes_of(tmp_path) == []


def test_what_maria_wrote_before_anybody_looked_opens_her_conversation_with_alice(tmp_path: Path) -> None:
    """It waits on the log, as after a Ctrl-C; workers may not get it while the operator is still the agent."""
    ports = Ports.free()
    with connected_system(tmp_path, ports) as system:
        system.kill("bridge")
        said = {"channel": "whatsapp", "account_id": ACCOUNT_IDS["whatsapp"], "from": MARIA.address, "text": "Alguém?"}
        httpx.post(f"{system.simulator_url}/_control/inbound", json=said).raise_for_status()
        stats = f"{system.simulator_url}/_control/stats"
        eventually(lambda: httpx.get(stats).json()["webhooks"]["items_delivered"])
    with demo(tmp_path, ports) as process:
        code, printed = finished(process)
    assert ALL_FINE in printed
    assert code == 0


def test_what_never_arrives_is_counted_and_fails_the_run(tmp_path: Path) -> None:
    """WhatsApp takes the one answer that Maria is sent, and then says that it failed: she never writes again."""
    broken = json.dumps({"fail_numbers": [MARIA.address]})
    with demo(tmp_path, Ports.free(), "--limit-s", "20", "--switches", broken) as process:
        code, printed = finished(process)
    assert code == 1
    assert "lost: 1   late (over 20 s): 1   twice: 0   scenes broken off: 1" in printed
    assert "1 never became READ" in printed
    assert "failed: platform:131026" in printed
    assert numbers("WhatsApp", printed)["accepted"] == "1"
    assert numbers("Instagram", printed)["read"] == f"{TO_JOHN}"
    assert processes_of(tmp_path) == []


def test_users_are_kept_and_names_that_others_took_are_avoided(system: LocalSystem, tmp_path: Path) -> None:
    first = sign_in_all(system.api_url, tmp_path / "one")
    again = sign_in_all(system.api_url, tmp_path / "one")
    assert [each.user_id for each in again] == [each.user_id for each in first]
    others = sign_in_all(system.api_url, tmp_path / "two")
    assert {each.user_id for each in others}.isdisjoint(each.user_id for each in first)
    assert [each.name for each in others] == ["Alice", "Bob"]
    assert others[0].username.startswith("alice-")


@pytest.mark.parametrize(
    ("options", "environment", "told"),
    [
        pytest.param(["--limit-s", "0"], {}, "--limit-s must be above 0", id="no time"),
        pytest.param([], {"DEMO_LIMIT_S": "soon"}, "invalid float value: 'soon'", id="no number"),
        pytest.param(["--switches", "[1]"], {}, "a JSON object is expected", id="no switches"),
        pytest.param([], {"DEMO": "twice"}, "DEMO may be empty or `once`", id="an unknown way"),
        pytest.param([], {"PROFILE": "moon"}, "PROFILE may be empty, `local` or `cluster`", id="another profile"),
    ],
)
def test_a_wrong_option_is_told_before_anything_starts(
    tmp_path: Path, options: list[str], environment: dict[str, str], told: str
) -> None:
    environment = {**os.environ, "STATE_DIR": str(tmp_path / "state"), **environment}
    command = [sys.executable, "-m", "demo", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "state").exists()


def test_help_tells_how_to_watch_it_fail() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    for word in ("--once", "--limit-s", "--switches", "STATE_DIR", "exit code"):
        assert word in done.stdout
