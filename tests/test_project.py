"""The repository itself: nothing of one machine in it, nothing undocumented, nothing unpinned."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
SETS = ("base", "local", "dev")
MACHINE = re.compile(
    r"(?<![\w.])/(?:root|home/\w+|Users/\w+|work|opt/wheels)/"  # folders of whoever wrote it
    r"|--(?:extra-)?index-url|--find-links|--trusted-host|pypi\.org/simple",
)


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


def normalized(name: str) -> str:
    """As PEP 503 spells a project's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(name: str) -> set[str]:
    """The projects that a .in file names itself."""
    lines = (line.strip() for line in (REQUIREMENTS / f"{name}.in").read_text().splitlines())
    return {normalized(re.split(r"[\[<>=!~; ]", line)[0]) for line in lines if line and line[0] not in "#-"}


def included(name: str) -> set[str]:
    """The sets that a .in file takes in with ``-r``."""
    return set(re.findall(r"^-r (\w+)\.in$", (REQUIREMENTS / f"{name}.in").read_text(), re.MULTILINE))


def pinned(name: str) -> dict[str, str]:
    """Project and version of each pin of a .txt file."""
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    return {normalized(project): version for project, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_tracked_file_knows_a_machine() -> None:
    found = []
    for path in tracked():
        if path == Path(__file__) or path.suffix in {".png", ".jpg", ".woff2"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if MACHINE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []


@pytest.mark.parametrize("name", SETS)
def test_every_requirement_is_pinned_with_hashes(name: str) -> None:
    wanted = asked_for(name).union(*(asked_for(other) for other in included(name)))
    assert wanted, "the .in file was not understood"
    assert wanted <= set(pinned(name))
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize(("smaller", "larger"), [("base", "local"), ("local", "dev")])
def test_a_larger_set_holds_the_smaller_one_at_the_same_versions(smaller: str, larger: str) -> None:
    assert pinned(smaller).items() <= pinned(larger).items()


def test_a_name_that_is_not_pinned_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.in").write_text("# why\nDjango_Extra[all]>=1 ; python_version > '3'\n-r other.in\n")
    (tmp_path / "base.txt").write_text("django==5 \\\n    --hash=sha256:0\n")
    monkeypatch.setattr("tests.test_project.REQUIREMENTS", tmp_path)
    assert asked_for("base") == {"django-extra"}
    assert included("base") == {"other"}
    assert pinned("base") == {"django": "5"}


def environment_variables() -> set[str]:
    """Every variable that settings and env read by name."""
    source = "".join((ROOT / "chat4all_project" / name).read_text() for name in ("settings.py", "env.py"))
    return set(re.findall(r"""(?:env\.\w+|secrets?|public_url)\(\s*"([A-Z][A-Z0-9_]+)\"""", source))


def test_every_environment_variable_is_documented() -> None:
    variables = environment_variables()
    assert {"SECRET_KEY", "STATE_DIR", "EVENT_LOG_URL"} <= variables, "the settings were not understood"
    documented = (ROOT / "docs" / "configuration.md").read_text()
    assert sorted(name for name in variables if f"`{name}`" not in documented) == []


def test_every_port_of_the_local_profile_is_documented() -> None:
    from demo.ports import Ports

    documented = (ROOT / "docs" / "configuration.md").read_text()
    assert sorted(name for name in Ports().environment() if f"`{name}`" not in documented) == []


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "adr"
    decisions = sorted(path.name for path in folder.glob("[0-9]*.md"))
    index = (folder / "README.md").read_text()
    assert decisions
    assert [name for name in decisions if f"({name})" not in index] == []


def test_links_between_documents_lead_somewhere() -> None:
    links = [(path, link) for path in tracked("*.md") for link in re.findall(r"\]\(([^)#\s]+)", path.read_text())]
    local = [(path, link) for path, link in links if "://" not in link and not link.startswith("mailto:")]
    broken = [f"{path.relative_to(ROOT)}: {link}" for path, link in local if not (path.parent / link).exists()]
    assert broken == []


def test_the_licence_is_the_one_that_the_project_names() -> None:
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


@pytest.mark.parametrize("script", [".ci/run", ".ci/run-tests", ".ci/make-venv", ".ci/system-parts", "manage.py"])
def test_scripts_may_be_executed(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111
