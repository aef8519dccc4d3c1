"""Commands that people are told to type: compose has the words, its file the services, the Makefile the targets."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.deploy import variables
from tests.deploy.programs import DOCKER, ROOT, run
from tests.deploy.test_docker import COMPOSE, services

TEXTS = [
    *(ROOT / name for name in ("Makefile", "README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(DOCKER / name for name in ("Dockerfile", "compose.yml", "make-env", ".env.example")),
]
WITH_A_VALUE = {"-e", "--env", "--scale", "--profile"}
ONE_SERVICE = {"exec", "run"}  # what follows it is for the container


def commands() -> list[str]:
    """Each `docker compose …` of the documents, once: up to what ends a command there."""
    found: set[str] = set()
    for path in TEXTS:
        text = path.read_text().replace("\\\n", " ")
        found.update(re.findall(r"""\bdocker compose (?:"[^"]*"|[^"`|#;&\n])+""", text))
    return sorted({" ".join(each.split()) for each in found})


def test_the_documents_have_such_commands() -> None:
    assert "docker compose -f docker/compose.yml up" in commands()
    assert len(commands()) > 10


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_of_compose_is_one(command: str) -> None:
    words = shlex.split(command)
    assert words[:3] == ["docker", "compose", "-f"]
    assert ROOT / words[3] == COMPOSE
    asked = Command(words[4], words[5:])
    assert {word.partition("=")[0] for word in asked.options} <= known_options(asked.name)
    assert set(asked.services) <= set(services())
    assert set(asked.variables) <= variables.read_by_us(), (
        "compose fills in the file from the shell, before -e is looked at"
    )


class Command:
    """One subcommand of compose, taken apart."""

    def __init__(self, name: str, words: list[str]) -> None:
        self.name = name
        self.options: list[str] = []
        self.services: list[str] = []
        self.variables: list[str] = []
        rest = iter(words)
        for word in rest:
            if word.startswith("-"):
                self.options.append(word)
                self._value(word, rest)
            else:
                self.services.append(word)
                if name in ONE_SERVICE:
                    return

    def _value(self, option: str, rest: Iterator[str]) -> None:
        if option not in WITH_A_VALUE:
            return
        name = next(rest).partition("=")[0]
        if option == "--scale":
            self.services.append(name)
        elif option in {"-e", "--env"}:
            self.variables.append(name)


@cache
def known_options(name: str) -> set[str]:
    told = run("docker-compose", name, "--help")
    assert told.returncode == 0, told.stderr
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", told.stdout))


def test_variables_that_people_may_set_are_in_the_compose_file() -> None:
    """Those of .env, and those of the documents that go before a command of compose."""
    offered = re.findall(r"^(?:# )?([A-Z0-9_]+)=", (DOCKER / ".env.example").read_text(), re.MULTILINE)
    typed = [name for path in TEXTS for name in re.findall(r"\b([A-Z0-9_]+)=\S* docker compose", path.read_text())]
    filled_in = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text())) | {"COMPOSE_PROFILES"}
    assert {*offered, *typed} == filled_in


STARTS_SERVERS = ["demo PROFILE=cluster", "run PROFILE=cluster", "soak", "stack", "bench", "bench-full"]


@pytest.mark.parametrize("target", STARTS_SERVERS)
def test_what_only_starts_servers_wants_no_browser(target: str) -> None:
    dry = ["make", "-n", *target.split()]
    told = subprocess.run(dry, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    assert re.findall(r"^.*\.ci/system-parts$", told.stdout, re.MULTILINE) == ["SERVERS=1 .ci/system-parts"]


def test_the_servers_want_java_maven_go_and_postgresql(tmp_path: Path) -> None:
    for name in ("sed", "paste", "grep"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    environment = {"PATH": str(tmp_path), "SYSTEM_ROOT": str(tmp_path), "SERVERS": "1"}
    script = ["/bin/sh", str(ROOT / ".ci" / "system-parts")]
    told = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert told.stderr.splitlines() == [
        "The servers need more of the system: java maven go postgresql.",
        "Put on PATH: java (17 or 21), mvn, go (1.21 or newer), initdb (PostgreSQL)",
    ]
    assert told.returncode == 1


def test_every_target_that_documents_name_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed = re.compile(r"(?:`make ([a-z][a-z-]*))|(?:^make ([a-z][a-z-]*) +#)", re.MULTILINE)
    named = {"".join(found) for path in TEXTS for found in typed.findall(path.read_text())}
    assert len(named) > 5
    assert named <= targets
