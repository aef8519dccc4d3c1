"""The local profile as an object: what its parts are told, and what a person is told when it cannot start."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import redis

from connectors import registry
from demo import supervisor
from demo.ports import Ports, PortsTaken
from demo.processes import StartFailed
from demo.supervisor import LocalSystem
from messaging import topics, wiring
from tests.demo.test_processes import eventually

ROOT = Path(__file__).resolve().parents[2]
STORES = ("redis-log", "redis-bus")


def client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=5)


def test_parts_are_told_where_the_others_are_and_nothing_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE", "HTTP_PROXY", "SECRET_KEY", "CHAT4ALL_ENV"):
        monkeypatch.setenv(name, "of another project")
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    ports = Ports.free()
    system = LocalSystem(tmp_path, ports=ports, env={"PARTITIONS": "5"})
    assert system.env["EVENT_LOG_URL"] == f"redis://127.0.0.1:{ports.redis_log}/0"
    assert system.env["BUS_URL"] == f"redis://127.0.0.1:{ports.redis_bus}/0"
    assert (system.env["API_URL"], system.api_url) == (f"http://127.0.0.1:{ports.api}",) * 2
    assert (system.env["GATEWAY_URL"], system.gateway_url) == (f"ws://127.0.0.1:{ports.gateway}",) * 2
    assert system.env["STATE_DIR"] == str(tmp_path)
    assert (system.env["LOG_LEVEL"], system.env["PARTITIONS"]) == ("DEBUG", "5")
    assert "of another project" not in system.env.values()


def test_a_part_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such process: kafka"):
        LocalSystem(tmp_path, processes=["redis-log", "kafka"])


def test_several_of_a_process_have_names_and_health_ports_of_their_own(tmp_path: Path) -> None:
    system = LocalSystem(tmp_path, instances={"bridge": 2, "worker-core": 3})
    assert system.processes[-2:] == ("bridge", "bridge-2")
    several = ("worker-core", "worker-core-2", "worker-core-3", "bridge", "bridge-2")
    assert set(several) <= set(system.processes)
    assert len({system.ready_url(name) for name in system.processes if "redis" not in name}) == 11
    with pytest.raises(ValueError, match="no such process to have several of: gateway"):
        LocalSystem(tmp_path, instances={"gateway": 2})


def test_an_event_log_elsewhere_needs_no_server_of_ours_nor_its_port(tmp_path: Path) -> None:
    ports = Ports.free()
    with socket.create_server(("127.0.0.1", ports.redis_log)):
        env = {"EVENT_LOG_URL": "redis://127.0.0.1:1/0"}
        system = LocalSystem(tmp_path, ports=ports, env=env)
        assert "redis-log" not in system.processes
        assert "redis-bus" in system.processes
        ports.check_free(unused=("redis_log",))


def test_every_queue_has_a_worker_and_files_from_platforms_hold_up_no_message_between_users(tmp_path: Path) -> None:
    queues = {topic: wiring.queue_of(topic) for topic in wiring.work_topics()}
    assert {f"worker-{queue}" for queue in queues.values()} <= set(LocalSystem(tmp_path).processes)
    assert queues[topics.INBOUND] not in {queues[topics.MESSAGES], queues[topics.STATUS_UPDATES]}


def test_a_new_connector_has_a_worker_with_a_health_port_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert supervisor.channel_names() == registry.channels()
    monkeypatch.setattr(supervisor, "channel_names", lambda: (*registry.channels(), "pigeon"))
    system = LocalSystem(tmp_path, instances={"worker-pigeon": 2})
    assert {"worker-pigeon", "worker-pigeon-2"} <= set(system.processes)
    assert len({system.ready_url(name) for name in system.processes if "redis" not in name}) == 10


def test_the_log_has_room_for_all_its_partitions_and_an_end(tmp_path: Path) -> None:
    env = {"PARTITIONS": "5", "LOG_PARTITION_BYTES": str(3 * 1024 * 1024)}
    with LocalSystem(tmp_path, env=env, processes=STORES) as system:
        printed = system.manage("setup_topics")
        assert "whatsapp-outbound: 5 partitions" in printed
        with client(system.env["EVENT_LOG_URL"]) as log:
            known = {name.decode(): json.loads(topic) for name, topic in log.hgetall("{log}:topics").items()}
            bounds = {name: topic.get("max_bytes") for name, topic in known.items()}
            # Dead letters go by age; there is room for as many of them as for a partition of what they come from.
            assert bounds == {name: None if "dead-letters" in name else 3 * 1024 * 1024 for name in known}
            room = sum(topic["partitions"] for topic in known.values()) * 3 * 1024 * 1024
            assert room < int(log.config_get("maxmemory")["maxmemory"]) <= 2 * room
            assert log.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_the_log_keeps_what_it_took_through_a_kill_and_the_bus_may_be_flushed(tmp_path: Path) -> None:
    with LocalSystem(tmp_path, processes=STORES) as system:
        log, bus = client(system.env["EVENT_LOG_URL"]), client(system.env["BUS_URL"])
        log.set("kept", "yes")
        system.kill("redis-log")
        with pytest.raises(redis.ConnectionError):
            log.get("kept")
        system.restart("redis-log")
        assert log.get("kept") == b"yes"
        with pytest.raises(redis.exceptions.NoPermissionError):
            log.flushall()
        assert bus.flushall()
        log.close()
        bus.close()
    assert not any(map(system.is_running, STORES))


def test_two_systems_run_at_once(tmp_path: Path) -> None:
    with LocalSystem(tmp_path / "a", processes=STORES) as one, LocalSystem(tmp_path / "b", processes=STORES) as other:
        assert one.env["BUS_URL"] != other.env["BUS_URL"]
        assert one.pid("redis-log") != other.pid("redis-log")


def test_a_signal_reaches_the_process(tmp_path: Path) -> None:
    with LocalSystem(tmp_path, processes=STORES, on_crash=lambda _: None) as system:
        pid = system.pid("redis-bus")
        system.signal("redis-bus", signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        system.signal("redis-bus", signal.SIGCONT)
        system.restart("redis-bus")
        assert system.pid("redis-bus") != pid


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    ports = Ports.free()
    with socket.create_server(("127.0.0.1", ports.redis_bus)):
        system = LocalSystem(tmp_path, ports=ports, processes=STORES)
        with pytest.raises(PortsTaken, match="REDIS_BUS_PORT"):
            system.start()
    assert not (tmp_path / "logs").exists()


def test_a_failed_start_leaves_nothing_running(tmp_path: Path) -> None:
    """The log's folder is a file here, so that its redis-server cannot start; the bus had no trouble."""
    (tmp_path / "redis-log").write_text("in the way")
    system = LocalSystem(tmp_path, processes=STORES, on_crash=lambda _: None)
    with pytest.raises((StartFailed, OSError)):
        system.start()
    assert not any(map(system.is_running, STORES))
    system.ports.check_free()


def test_a_management_command_that_fails_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"(?s)manage\.py no_such_command failed:.*no_such_command"):
        LocalSystem(tmp_path).manage("no_such_command")


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        pytest.param("API_PORT", "eighty", "API_PORT='eighty' is not a port number", id="no number"),
        pytest.param("API_PORT", None, "is taken by .*set API_PORT=…", id="taken"),
    ],
)
def test_make_run_tells_a_person_what_is_wrong_and_fails(
    tmp_path: Path, variable: str, value: str | None, told: str
) -> None:
    ports = Ports.free()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {
            "PATH": "/usr/bin:/bin",
            "STATE_DIR": str(tmp_path),
            **replace(ports, api=taken.getsockname()[1]).environment(),
            **({variable: value} if value else {}),
        }
        done = subprocess.run(
            [sys.executable, "-m", "demo.supervisor"], cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr

    assert re.search(told, done.stderr)


def test_a_few_slow_clients_do_not_stop_the_api(tmp_path: Path) -> None:
    with LocalSystem(tmp_path, processes=(*STORES, "api")) as system, ExitStack() as slow:
        for _ in range(24):  # three times as many as there were threads once
            client_socket = slow.enter_context(socket.create_connection(("127.0.0.1", system.ports.api)))
            client_socket.sendall(b"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            client_socket.sendall(b"Content-Length: 1000\r\n\r\n{")
        for _ in range(10):
            assert httpx.get(f"{system.api_url}/health", timeout=5, trust_env=False).status_code == 200
