"""The simulator as a process: its options, its bounds, its end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.simulator.harness import (
    ALICE,
    REPOSITORY,
    WHATSAPP,
    Receiver,
    Simulator,
    account,
    eventually,
    free_port,
    text,
)

ACCOUNTS = json.dumps([account("whatsapp", WHATSAPP)])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulator", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_names_every_option() -> None:
    shown = run("--help").stdout
    for option in ("--port", "--webhook-url", "--accounts-file", "--switches", "--max-messages", "SIMULATOR_PORT"):
        assert option in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port", "0"], "port 0"),
        (["--accounts", "[{"], "truncated"),
        (["--accounts", '[{"channel": "fax"}]'], "fax"),
        (["--accounts-file", "/nonexistent"], "No such file"),
        (["--switches", '{"turbo": 1}'], "turbo"),
        (["--max-messages", "0"], "at least 1"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(arguments: list[str], complaint: str) -> None:
    done = run("--port", str(free_port()), *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_told_with_a_hint(tmp_path: Path) -> None:
    first = Simulator(log_path=tmp_path / "log")
    try:
        done = run("--port", str(first.port))
        assert done.returncode == 1
        assert str(first.port) in done.stderr
        assert "SIMULATOR_PORT" in done.stderr
    finally:
        first.close()


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    port = free_port()
    env = {"SIMULATOR_ACCOUNTS": ACCOUNTS, "SIMULATOR_SWITCHES": '{"latency_ms": 7}', "SIMULATOR_PORT": "1"}
    simulator = Simulator(log_path=tmp_path / "log", env=env, port=port)  # --port wins over the environment
    try:
        assert simulator.control("GET", "switches")["latency_ms"] == 7
        assert simulator.control("GET", "accounts")["accounts"][0]["account_id"] == WHATSAPP
    finally:
        simulator.close()


def test_only_the_last_messages_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    simulator = Simulator("--max-messages", "10", "--accounts", ACCOUNTS, log_path=tmp_path / "log")
    try:
        for n in range(25):
            simulator.send_text(str(n), correlation=str(n))
            simulator.inbound(text=str(n))
        assert [m["text"] for m in simulator.messages()] == [str(n) for n in range(15, 25)]
        assert simulator.control("GET", "messages?since=3")["oldest"] == 16
        stats = simulator.stats()
        assert (stats["sends"]["accepted"], stats["inbound"]["sent"]) == (25, 25)
        assert stats["kept"] == {"messages": 10, "inbound": 10}
    finally:
        simulator.close()


def test_what_could_not_be_told_is_not_taken(tmp_path: Path) -> None:
    silent = f"http://127.0.0.1:{free_port()}/"
    arguments = ("--max-pending", "9", "--accounts", ACCOUNTS, "--webhook-url", silent)
    simulator = Simulator(*arguments, log_path=tmp_path / "log")
    try:
        codes = [simulator.whatsapp(text(str(n))).status_code for n in range(5)]
        assert codes == [200, 200, 200, 503, 503]
        body = {"channel": "whatsapp", "account_id": WHATSAPP, "from": ALICE, "text": "oi"}
        assert simulator.control("POST", "inbound", body, status=503)["error"]["code"] == "overloaded"
        assert simulator.stats()["webhooks"]["pending"] == 9
    finally:
        simulator.close()


def test_sigterm_lets_queued_webhooks_out_and_ends_with_zero(tmp_path: Path) -> None:
    receiver = Receiver()
    arguments = ("--accounts", ACCOUNTS, "--webhook-url", receiver.url, "--switches", '{"webhook_linger_ms": 1500}')
    simulator = Simulator(*arguments, log_path=tmp_path / "log")
    try:
        simulator.inbound(text="last words")
        assert receiver.posts == []
        assert simulator.close() == 0
        assert [item["text"]["body"] for item in receiver.items("messages")] == ["last words"]
        assert '"event": "stopped", "dropped_items": 0' in simulator.log()
    finally:
        simulator.close()
        receiver.close()


def test_sigterm_ends_calls_that_hang(tmp_path: Path) -> None:
    switches = '{"ambiguous_rate": 1, "ambiguous_mode": "hang"}'
    simulator = Simulator("--accounts", ACCOUNTS, "--switches", switches, log_path=tmp_path / "log")
    failures: list[type[Exception]] = []
    call = threading.Thread(target=_call, args=(lambda: simulator.whatsapp(text("oi")), failures))
    call.start()
    with httpx.Client(base_url=simulator.url) as other:
        eventually(lambda: other.get("/_control/stats").json()["sends"]["unanswered"] == 1)
    simulator.process.terminate()
    assert simulator.process.wait(10) == 0
    call.join()
    assert failures == [httpx.RemoteProtocolError]
    simulator.close()


def _call(request: Callable[[], httpx.Response], failures: list[type[Exception]]) -> None:
    try:
        request()
    except httpx.TransportError as error:
        failures.append(type(error))
