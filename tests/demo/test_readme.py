"""The README's tour is run as it stands, and what it says about ports and links is true."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.ports import Ports
from demo.supervisor import LocalSystem, connected_system
from tests.demo.test_processes import eventually

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ANSWER_MARK = "--- "
RITAS = ["Assinado, Rita", "Oi, Ana!", "Olá, Rita!"]  # the conversation with her, newest first


def tour() -> list[str]:
    """The tour's code blocks, as written."""
    chapter = README.split("## A tour with curl\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", chapter, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    """What `make run` brings up."""
    with connected_system(tmp_path_factory.mktemp("tour"), Ports.free()) as running:
        yield running


def environment(system: LocalSystem) -> dict[str, str]:
    return {**os.environ, **system.ports.environment(), "STATE_DIR": str(system.state_dir)}


def run(blocks: list[str], system: LocalSystem) -> str:
    script = "\n".join(["set -euo pipefail", *blocks, "echo", f"echo '{ANSWER_MARK}'$ANA $MESSAGE $WHATSAPP"])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env=environment(system),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(printed: str) -> list[Any]:
    """The JSON objects that the tour printed, in order."""
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


@pytest.mark.e2e
@pytest.mark.timeout(240)
@pytest.mark.xdist_group("system")
def test_the_tour_does_what_it_says_also_when_it_is_pasted_again(system: LocalSystem) -> None:
    *blocks, live = tour()
    printed = run(blocks, system)
    first = answers(printed)
    ana, ben, conversation, history, read, story, with_file, platform, _, said, webhook, with_rita = first
    assert (ana["username"], ben["username"]) == ("ana", "ben")
    assert [member["id"] for member in conversation["members"]] == [ana["user_id"], ben["user_id"]]
    assert {message["content"] for message in history["items"]} <= {"Oi, Ben!"}  # it may still be on its way
    assert read["status"] == "READ"
    assert story["content"] == "Oi, Ben!"
    assert with_file["status"] == "ACCEPTED"
    assert "nome,total\nAna,42\n" in printed
    assert {message["text"] for message in platform["messages"]} <= {"Olá, Rita!"}
    assert said["id"].startswith("wamid.")
    assert webhook == {"received": 1}
    assert {message["content"] for message in with_rita["items"]} <= set(RITAS)
    token, *message_ids = printed.rpartition(ANSWER_MARK)[2].split()
    with httpx.Client(base_url=system.api_url, headers={"Authorization": f"Bearer {token}"}) as http:
        eventually(lambda: {http.get(f"/v1/messages/{each}").json()["status"] for each in message_ids} == {"READ"})
        eventually(lambda: contents("tour-whatsapp", http) == RITAS)
        assert_live(live, token, http, system)
        again = answers(run(blocks, system))
        assert [answer.get("code") for answer in again[:2]] == ["username_taken"] * 2
        assert again[-2] == {"received": 1}
        eventually(lambda: contents("tour-whatsapp", http) == ["Oi, Ana!", "Olá, Rita!", *RITAS])


def contents(conversation_id: str, http: httpx.Client) -> list[str]:
    items = http.get(f"/v1/conversations/{conversation_id}/messages").json()["items"]
    return [each["content"] for each in items]


def assert_live(block: str, token: str, http: httpx.Client, system: LocalSystem) -> None:
    """The socket block, as a person starts it in the same shell, shows what is sent meanwhile."""
    with subprocess.Popen(
        ["bash", "-c", f"ANA={token}\nexec {block}"], cwd=ROOT, env=environment(system),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as socket:  # fmt: skip
        assert socket.stdout is not None
        assert any('"type":"hello"' in line for line in socket.stdout)
        accepted = http.post("/v1/messages", json={"conversation_id": "tour", "content": "Ao vivo"})
        assert accepted.status_code == 202
        assert any('"type":"message"' in line and "Ao vivo" in line for line in socket.stdout)
        socket.terminate()


@pytest.mark.e2e
@pytest.mark.timeout(240)
@pytest.mark.xdist_group("system")
def test_another_signature_gets_a_401_as_the_tour_says(system: LocalSystem) -> None:
    [block] = [block for block in tour() if "SIGNATURE=" in block]
    forged = block.replace("sha256=$SIGNATURE", "sha256=${SIGNATURE%?}_")
    assert forged != block
    [refusal] = answers(run([tour()[0], "ANA= MESSAGE= WHATSAPP=", forged.split("sleep")[0]], system))
    assert (refusal["status"], refusal["code"]) == (401, "bad_signature")


def test_the_table_of_ports_is_that_of_the_code() -> None:
    rows = set(re.findall(r"^\| (\d+) \|.*\| `(\w+)` \|$", README, re.MULTILINE))
    assert rows == {(str(each.default), each.metadata["variable"]) for each in dataclasses.fields(Ports)}


def test_every_option_and_variable_of_the_demo_is_documented() -> None:
    told = (ROOT / "docs" / "demo.md").read_text()
    code = (ROOT / "demo" / "__main__.py").read_text()
    wanted = set(re.findall(r'"(--[a-z-]+)"', code)) | set(re.findall(r'"(DEMO\w*)"', code))
    assert len(wanted) >= 6
    assert {name for name in wanted if f"`{name}" not in told} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []
