"""`.ci/system-parts` on invented systems: what it would install, or says, where parts are missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.stack.downloads import ROOT

TOOLS = ("sh", "sed", "grep", "sort", "head", "tail", "cut", "tr", "paste", "mkdir", "chmod", "rm", "cat")
ALL = ("chromium", "redis-server", "mvn", "initdb", "prometheus")
JAVA_17 = "echo 'openjdk version \"17.0.15\" 2025-04-15' >&2"
JAVA_25 = "echo 'openjdk version \"25.0.1\" 2025-10-21' >&2"
GO_26 = "echo go version go1.26.8 linux/amd64"
GO_19 = "echo go version go1.19.8 linux/amd64"
COMPLETE = {**dict.fromkeys(ALL, ""), "java": JAVA_17, "go": GO_26}


@dataclass(frozen=True)
class System:
    """A root folder and a PATH of our own; programs are scripts, and apt-get notes what it was told."""

    folder: Path

    def run(
        self,
        programs: Mapping[str, str],
        *,
        apt: str | None = "",
        user: int = 0,
        os: str = "debian",
        local: bool = False,
        apt_get_ends: int = 0,
        playwright_has_chromium: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """``apt`` is what apt-cache answers to; None is a system without apt."""
        ours, links = self.folder / "ours", self.folder / "links"  # apart: nothing may ever be written through a link
        for directory in (ours, links):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        for tool in TOOLS:
            (links / tool).symlink_to(shutil.which(tool) or "")
        self._write("etc/os-release", f"ID={os}\nVERSION_CODENAME=bookworm\n")
        (self.folder / "etc/apt/sources.list.d").mkdir(parents=True, exist_ok=True)
        scripts = dict(programs) | {"id": f"echo {user}"}
        if apt is not None:
            policy = self.folder / "usr/sbin/policy-rc.d"
            indextargets = '[ "$1" = indextargets ] && echo "mirror/debian /keys/debian.gpg"'
            installs = (
                f'case "$*" in install*) sh {policy}; echo "services: $?" >> {self.notes}; exit {apt_get_ends} ;; esac'
            )
            scripts["apt-get"] = f'echo "$@" >> {self.notes}; {indextargets}; {installs}'
            scripts["apt-cache"] = apt
        for name, script in scripts.items():
            self._script(f"ours/{name}", script)
        self._script(".venv/bin/python", f"exit {0 if playwright_has_chromium else 1}")
        self._script(".venv/bin/playwright", f'echo playwright "$@" >> {self.notes}')
        self.notes.unlink(missing_ok=True)
        return subprocess.run(
            [ROOT / ".ci" / "system-parts"],
            cwd=self.folder,
            env={"PATH": f"{ours}:{links}", "SYSTEM_ROOT": str(self.folder), "LOCAL": "1" if local else ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )

    @property
    def notes(self) -> Path:
        return self.folder / "notes"

    def installed(self) -> list[str]:
        """What apt-get was asked for."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [word for line in lines if line.startswith("install") for word in line.split() if word[0] not in "-i"]

    def add(self, path: str) -> None:
        self._write(path, "")

    def _script(self, path: str, script: str) -> None:
        self._write(path, f"#!/bin/sh\n{script}\n")
        (self.folder / path).chmod(0o755)

    def _write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def policy(**candidates: str) -> str:
    """An apt-cache that knows these versions, and no package by a pattern."""
    known = "".join(f'*" {name.replace("_", "-")}") echo "  Candidate: {v}" ;; ' for name, v in candidates.items())
    return f'case " $*" in {known} esac'


TRIXIE = policy(golang_go="2:1.24~2", default_jre_headless="2:1.21-76")
BOOKWORM = policy(golang_go="2:1.19~1", openjdk_17_jre_headless="17.0.15+6-1")


def test_nothing_is_installed_where_nothing_is_missing(system: System) -> None:
    done = system.run(COMPLETE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not system.notes.exists()


def test_the_local_profile_needs_a_browser_and_a_redis_only(system: System) -> None:
    assert system.run({}, local=True).returncode == 0
    assert system.installed() == ["chromium", "redis-server"]


def test_all_is_installed_on_a_debian_that_has_nothing(system: System) -> None:
    done = system.run({}, apt=TRIXIE)
    assert done.returncode == 0, done.stderr
    wanted = ["chromium", "redis-server", "default-jre-headless", "maven", "golang-go", "postgresql", "prometheus"]
    assert system.installed() == wanted


def test_no_service_is_started_and_services_may_start_again_afterwards(system: System) -> None:
    system.run({}, apt=TRIXIE)
    assert "services: 101" in system.notes.read_text()
    assert not (system.folder / "usr/sbin/policy-rc.d").exists()


def test_a_policy_of_the_system_is_left_alone(system: System) -> None:
    (system.folder / "usr/sbin").mkdir(parents=True)
    (system.folder / "usr/sbin/policy-rc.d").write_text("exit 7\n")
    system.run({}, apt=TRIXIE)
    assert "services: 7" in system.notes.read_text()
    assert (system.folder / "usr/sbin/policy-rc.d").read_text() == "exit 7\n"


def test_services_that_came_with_it_stay_down_after_a_reboot(system: System) -> None:
    (system.folder / "run/systemd/system").mkdir(parents=True)
    disabled = system.folder / "disabled"
    without = {name: script for name, script in COMPLETE.items() if name not in {"initdb", "prometheus"}}
    system.run({**without, "systemctl": f'echo "$@" >> {disabled}'}, apt=TRIXIE)
    assert disabled.read_text() == "disable --quiet --now postgresql\ndisable --quiet --now prometheus\n"


@pytest.mark.parametrize(
    ("java", "there", "wanted"),
    [
        pytest.param(JAVA_17, "", [], id="17 on PATH"),
        pytest.param(JAVA_25, "", ["openjdk-17-jre-headless"], id="too new for Cassandra"),
        pytest.param(JAVA_25, "usr/lib/jvm/java-17-openjdk-amd64/bin/java", [], id="17 beside a newer one"),
        pytest.param("echo 'java version \"1.8.0_402\"' >&2", "", ["openjdk-17-jre-headless"], id="too old"),
    ],
)
def test_a_java_that_cassandra_bears_is_there(system: System, java: str, there: str, wanted: list[str]) -> None:
    if there:
        system.add(there)
    assert system.run({**COMPLETE, "java": java}, apt=BOOKWORM).returncode == 0
    assert system.installed() == wanted


def test_a_go_that_cannot_fetch_a_newer_one_is_joined_by_one_that_can(system: System) -> None:
    """It comes from the backports of the mirror in use, which are added when nothing else has one."""
    backports = system.folder / "etc/apt/sources.list.d/chat4all-backports.list"
    search = f'[ "$1" = search ] && [ -e {backports} ] && echo "golang-1.22-go - Go\ngolang-1.23-go - Go"'
    assert system.run({**COMPLETE, "go": GO_19}, apt=f"{BOOKWORM}\n{search}").returncode == 0
    assert backports.read_text() == "deb [signed-by=/keys/debian.gpg] mirror/debian bookworm-backports main\n"
    assert system.installed() == ["golang-1.23-go"]


def test_a_go_beside_path_is_enough(system: System) -> None:
    system.add("usr/lib/go-1.23/bin/go")
    assert system.run({**COMPLETE, "go": GO_19}, apt=BOOKWORM).returncode == 0
    assert system.installed() == []


def test_who_is_not_root_is_told_the_line(system: System) -> None:
    done = system.run({"chromium": "", "redis-server": ""}, apt=TRIXIE, user=1000)
    assert done.returncode == 1
    line = "sudo apt-get install default-jre-headless maven golang-go postgresql prometheus"
    assert done.stderr.strip().endswith(line)
    assert system.installed() == []


UBUNTU = {name: script for name, script in COMPLETE.items() if name not in {"chromium", "prometheus"}}
"""Without a browser and one more part."""
INSTALLS_CHROMIUM = "playwright install --with-deps chromium"


def test_on_ubuntu_the_browser_is_playwright_s(system: System) -> None:
    assert system.run(UBUNTU, os="ubuntu").returncode == 0
    assert system.installed() == ["prometheus"]
    assert system.notes.read_text().splitlines()[-1] == INSTALLS_CHROMIUM


def test_a_browser_that_playwright_has_is_enough_on_ubuntu(system: System) -> None:
    done = system.run({**UBUNTU, "prometheus": ""}, os="ubuntu", user=1000, playwright_has_chromium=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not system.notes.exists()


def test_a_google_chrome_is_enough_on_ubuntu(system: System) -> None:
    assert system.run({**UBUNTU, "prometheus": "", "google-chrome-stable": ""}, os="ubuntu").returncode == 0
    assert not system.notes.exists()


def test_who_is_not_root_on_ubuntu_is_told_everything_at_once(system: System) -> None:
    done = system.run(UBUNTU, os="ubuntu", user=1000)
    assert done.returncode == 1
    told, line = done.stderr.splitlines()
    assert told == "The tests need more of the system: prometheus chromium."
    browser = "sudo .venv/bin/playwright install-deps chromium && .venv/bin/playwright install chromium"
    assert line == f"Run: sudo apt-get install prometheus && {browser}"
    assert not system.notes.exists()


@pytest.mark.parametrize(
    ("brew", "line"),
    [
        pytest.param(
            {"brew": ""},
            "brew install --cask google-chrome && brew install openjdk@17 && brew install postgresql@15",
            id="brew",
        ),
        pytest.param({}, "chromium or google-chrome, java (17 or 21), initdb (PostgreSQL)", id="neither"),
    ],
)
def test_a_system_without_apt_is_told_a_line_too(system: System, brew: Mapping[str, str], line: str) -> None:
    without = {name: script for name, script in COMPLETE.items() if name not in {"chromium", "java", "initdb"}}
    for user in (0, 1000):
        done = system.run({**without, **brew}, apt=None, user=user)
        assert done.returncode == 1
        assert "more of the system: chromium java postgresql." in done.stderr
        assert done.stderr.strip().endswith(line)


def test_a_failed_installation_fails_and_leaves_no_policy(system: System) -> None:
    without = {name: script for name, script in COMPLETE.items() if name != "mvn"}
    done = system.run(without, apt=TRIXIE, apt_get_ends=100)
    assert done.returncode == 100
    assert system.installed() == ["maven"]
    assert not (system.folder / "usr/sbin/policy-rc.d").exists()
