"""docker/: what compose, hadolint and nginx themselves say, and whether every name in there means something."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from messaging import topics, wiring
from tests.deploy import commands, variables
from tests.deploy.programs import DOCKER, ROOT, run
from tests.test_project import normalized, pinned

COMPOSE = DOCKER / "compose.yml"
DOCKERFILE = DOCKER / "Dockerfile"
IMAGES_OWN = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "DJANGO_SETTINGS_MODULE"}
HEALTH_PORT = 9100

Service = dict[str, Any]


@cache
def settings() -> dict[str, str]:
    """docker/.env as make-env writes it, made once for these tests."""
    return dict(made_env(DOCKER).items())


def made_env(docker: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "docker"
        copy.mkdir()
        for name in ("make-env", ".env.example"):
            shutil.copy2(docker / name, copy / name)
        subprocess.run([copy / "make-env"], check=True, capture_output=True, text=True)
        lines = (copy / ".env").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value.strip("'") for name, value in pairs}


@cache
def stack() -> dict[str, Any]:
    """The compose file as compose understands it, with every profile on."""
    told = run("docker-compose", "-f", COMPOSE, "--profile", "*", "config", "--format", "json", env=settings())
    assert told.returncode == 0, told.stderr
    assert not told.stderr, told.stderr  # a warning, such as a variable that nobody set
    parsed: dict[str, Any] = json.loads(told.stdout)
    return parsed


def services() -> dict[str, Service]:
    found: dict[str, Service] = stack()["services"]
    return found


def ours() -> dict[str, Service]:
    """What runs our image: the hub's processes and its jobs."""
    return {name: each for name, each in services().items() if each.get("build", {}).get("target") == "chat4all"}


def names(which: str) -> list[str]:
    """For parametrize, which runs before any fixture: from the file as it is written."""
    written = yaml.safe_load(COMPOSE.read_text())["services"]
    hub = [name for name, each in written.items() if each.get("build", {}).get("target") == "chat4all"]
    jobs = [name for name in hub if written[name].get("restart") == "no"]
    return {"all": list(written), "hub": hub, "jobs": jobs, "processes": [n for n in hub if n not in jobs]}[which]


# --- the compose file ---------------------------------------------------------------------------------------------


def test_compose_takes_the_file_without_a_warning() -> None:
    assert {"api", "gateway", "bridge", "proxy", "kafka", "cassandra", "postgres", "redis", "s3"} <= set(services())


def test_compose_refuses_to_start_without_secrets() -> None:
    told = run("docker-compose", "-f", COMPOSE, "--env-file", os.devnull, "config", "--quiet")
    assert told.returncode != 0
    assert "run docker/make-env" in told.stderr


@pytest.mark.parametrize("name", names("hub"))
def test_the_command_of(name: str) -> None:
    commands.check(services()[name]["command"])


def test_each_queue_has_a_worker_of_its_own() -> None:
    parsed = [commands.check(each["command"]) for each in ours().values() if "run_worker" in each["command"]]
    assert sorted(str(each.queue) for each in parsed) == sorted(
        {wiring.queue_of(topic) for topic in wiring.work_topics()}
    )


@pytest.mark.parametrize("name", [*names("hub"), "simulator"])
def test_every_variable_is_read_by_somebody(name: str) -> None:
    service = services()[name]
    named_by_options = {word.rpartition("=")[2] for word in service.get("command") or () if "--credential=" in word}
    unknown = set(service["environment"]) - variables.read_by_us() - named_by_options
    assert unknown == set()
    assert named_by_options <= set(service["environment"])


@pytest.mark.parametrize("name", sorted(set(names("all")) - set(names("hub")) - {"simulator", "kafka"}))
def test_every_variable_of_another_s_image_is_one_that_it_documents(name: str) -> None:
    service = services()[name]
    unknown = set(service.get("environment", ())) - variables.OF_IMAGES.get(repository(service), set())
    assert unknown == (set(in_the_proxy()) if name == "proxy" else set())


def repository(service: Service) -> str:
    image: str = service["image"]
    return image.rpartition(":")[0]


def in_the_proxy() -> list[str]:
    """The variables that its template has filled in."""
    return re.findall(r"\$\{(\w+)\}", (DOCKER / "proxy" / "chat4all.conf.template").read_text())


def test_all_processes_are_told_the_same() -> None:
    told = {
        json.dumps({**each["environment"], "SERVICE": ""}, sort_keys=True)
        for each in (services()[n] for n in names("processes"))
    }
    assert len(told) == 1
    assert [services()[name]["environment"]["SERVICE"] for name in names("processes")] == names("processes")


def test_a_process_starts_with_what_it_is_told(tmp_path: Path) -> None:
    """The real settings, with nothing but the container's environment: what is missing or malformed stops them."""
    told = load_settings({**image_environment(), **services()["api"]["environment"]}, tmp_path)
    assert told["service"] == "api"
    assert told["log"].startswith("kafka://kafka:")
    assert told["files"] == "files.s3.BucketStorage"


def load_settings(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    program = (
        "import django, json; django.setup(); from django.conf import settings as s; "
        "print(json.dumps({'service': s.LOGGING['service'], 'log': s.EVENT_LOG_URL, "
        "'files': s.STORAGES['default']['BACKEND']}))"
    )
    here = {"STATE_DIR": str(tmp_path), "STATIC_ROOT": str(tmp_path), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**environment, **here, "PATH": "/usr/bin:/bin", "DJANGO_SETTINGS_MODULE": "chat4all_project.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", names("processes"))
def test_its_health_check_asks_the_port_that_the_process_opens(name: str) -> None:
    service = services()[name]
    environment = {**image_environment(), **service["environment"]}
    parsed = commands.check(service["command"])
    opened = {
        "granian": int(environment["API_HEALTH_PORT"]),
        "run_worker": int(environment["HEALTH_PORT"]),
    }.get(parsed.kind, parsed.health_port)
    assert service["healthcheck"]["test"] == ["CMD", "healthcheck", "/ready"]
    assert opened == int(environment["HEALTH_PORT"]) == HEALTH_PORT


def test_every_address_leads_to_a_port_that_its_service_answers_on() -> None:
    """Found in environments, commands and the proxy: who is asked on another port than its own never answers."""
    known = {name: listening(name) for name in services()}
    text = json.dumps([(each.get("environment"), each.get("command")) for each in services().values()])
    text += (DOCKER / "proxy" / "chat4all.conf.template").read_text()
    addresses = set(re.findall(rf"(?<![\w.-])({'|'.join(map(re.escape, known))}):(\d{{2,5}})\b", text))
    assert {name for name, _ in addresses} >= {"kafka", "cassandra", "postgres", "redis", "s3", "api", "gateway"}
    assert {f"{name}:{port}" for name, port in addresses if int(port) not in known[name]} == set()


def listening(name: str) -> set[int]:
    service = services()[name]
    found = {int(port) for port in re.findall(r"[ :](\d{4,5})\b", " ".join(checked(service)))}
    if name in ours():
        parsed = commands.check(service["command"])
        found |= {port for port in (parsed.port, parsed.health_port) if port}
    if name == "kafka":
        found |= {int(port) for port in re.findall(r":(\d+)", service["environment"]["KAFKA_LISTENERS"])}
    if name == "simulator":
        found.add(int(image_environment("simulator")["SIMULATOR_PORT"]))
    if name == "postgres":
        found.add(int(service["healthcheck"]["test"][service["healthcheck"]["test"].index("-p") + 1]))
    return found


def checked(service: Service) -> list[str]:
    return list(service.get("healthcheck", {}).get("test", []))


@pytest.mark.parametrize("name", sorted(set(names("all")) - set(names("jobs"))))
def test_what_keeps_running_is_checked_kept_up_and_bounded(name: str) -> None:
    service = services()[name]
    assert service["restart"] == "unless-stopped"
    assert checked(service), "no health check"
    assert service["logging"]["options"].keys() >= {"max-size", "max-file"}
    assert int(service["deploy"]["resources"]["limits"]["memory"]) > 0
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", names("jobs"))
def test_a_job_runs_once(name: str) -> None:
    service = services()[name]
    assert service["restart"] == "no"
    assert service["healthcheck"] == {"disable": True}
    assert all(
        wanted["condition"] in {"service_healthy", "service_completed_successfully"}
        for wanted in service["depends_on"].values()
    )


def test_nothing_of_ours_starts_before_its_servers_are_set_up() -> None:
    jobs = {"migrate", "setup-topics", "setup-keyspace", "setup-storage"}
    for name in names("processes"):
        waits = services()[name]["depends_on"]
        assert {job for job, wanted in waits.items() if wanted["condition"] == "service_completed_successfully"} >= jobs


@pytest.mark.parametrize("name", names("processes"))
def test_it_can_be_scaled(name: str) -> None:
    service = services()[name]
    assert "container_name" not in service
    assert "ports" not in service
    assert [each["type"] for each in service["volumes"] if each.get("source")] == []


KEPT_AT = {
    "apache/kafka": "/var/lib/kafka/data",
    "cassandra": "/var/lib/cassandra",
    "postgres": "/var/lib/postgresql/data",
    "ghcr.io/versity/versitygw": "/data",
}


def test_what_keeps_data_has_a_volume_with_a_name_of_its_own() -> None:
    """`up` takes back what `--scale` added, and `down` forgets volumes without a name: with either a node's rows go."""
    keepers = {name: each for name, each in services().items() if repository(each) in KEPT_AT}
    assert {repository(each) for each in keepers.values()} == set(KEPT_AT)
    volumes = {
        name: [each.get("source") for each in service["volumes"] if each["target"] == KEPT_AT[repository(service)]]
        for name, service in keepers.items()
    }
    assert volumes == {name: [name] for name in keepers}
    assert set(keepers) <= stack()["volumes"].keys()
    assert {name for name, service in keepers.items() if "replicas" in service["deploy"]} == set()


def test_every_node_of_cassandra_is_told_the_same_and_one_joins_at_a_time() -> None:
    nodes = {name: each for name, each in services().items() if repository(each) == "cassandra"}
    assert list(nodes) == ["cassandra", "cassandra-2", "cassandra-3"]
    assert len({json.dumps(each["environment"], sort_keys=True) for each in nodes.values()}) == 1
    joins_after = {
        name: {one: w["condition"] for one, w in (e.get("depends_on") or {}).items()} for name, e in nodes.items()
    }
    assert joins_after == {
        "cassandra": {},
        "cassandra-2": {"cassandra": "service_healthy"},
        "cassandra-3": {"cassandra-2": "service_healthy"},
    }
    assert "cassandra-3" in services()["setup-keyspace"]["depends_on"], "copies need nodes to be on"


def test_there_is_one_node_of_cassandra_unless_the_ring_is_asked_for() -> None:
    told = run("docker-compose", "-f", COMPOSE, "config", "--services", env=settings())
    assert (told.returncode, told.stderr) == (0, "")
    assert {name for name in told.stdout.split() if name.startswith("cassandra")} == {"cassandra"}


def test_every_image_is_pinned() -> None:
    for name, service in services().items():
        before, _, tag = service["image"].rpartition(":")
        assert before, f"{name}: {service['image']} has no tag"
        assert "latest" not in tag
        if "build" not in service:
            assert re.search(r"\d+\.\d+", tag), f"{name}: {tag} moves"


def test_every_mounted_file_exists() -> None:
    sources = [
        each["source"]
        for service in services().values()
        for each in service.get("volumes", ())
        if each["type"] == "bind"
    ]
    assert [source for source in sources if not Path(source).exists()] == []
    assert len(sources) >= 4


def test_only_the_proxy_is_reached_from_elsewhere() -> None:
    published = {
        name: [port.get("host_ip") for port in service["ports"]]
        for name, service in services().items()
        if "ports" in service
    }
    assert {name for name, hosts in published.items() if hosts != ["127.0.0.1"]} == {"proxy"}


def test_the_servers_that_keep_data_have_no_way_out() -> None:
    assert stack()["networks"]["data"]["internal"] is True
    for name in ("kafka", "cassandra", "cassandra-2", "cassandra-3", "postgres", "redis"):
        assert set(services()[name]["networks"]) == {"data"}


def test_prometheus_looks_for_services_that_there_are() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    found = {
        (name, source.get("port"))
        for job in config["scrape_configs"]
        for source in job.get("dns_sd_configs", ())
        for name in source["names"]
    }
    assert {name for name, _ in found} >= set(names("processes"))
    assert {name for name, _ in found} <= set(services())
    assert {(name, port) for name, port in found if name in names("processes") and port != HEALTH_PORT} == set()


# --- make-env -----------------------------------------------------------------------------------------------------


def test_make_env_fills_every_secret_with_a_value_of_its_own() -> None:
    empty = re.findall(r"^(\w+)=$", (DOCKER / ".env.example").read_text(), re.MULTILINE)
    values = [settings()[name] for name in empty]
    assert len(empty) >= 10
    assert len(set(values)) == len(values)
    assert min(map(len, values)) >= 20
    assert not any(value in settings().values() for value in made_env(DOCKER).values() if len(value) >= 20)


def test_make_env_keeps_the_file_private_and_never_writes_over_it(tmp_path: Path) -> None:
    for name in ("make-env", ".env.example"):
        shutil.copy2(DOCKER / name, tmp_path / name)
    subprocess.run([tmp_path / "make-env"], check=True, capture_output=True)
    written = (tmp_path / ".env").read_bytes()
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    again = subprocess.run([tmp_path / "make-env"], check=True, capture_output=True, text=True)
    assert "left alone" in again.stdout
    assert (tmp_path / ".env").read_bytes() == written
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env", ".env.example", "make-env"]


# --- the image ----------------------------------------------------------------------------------------------------


@cache
def instructions() -> tuple[tuple[str, str], ...]:
    """(word, rest), continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return tuple(
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    )


@cache
def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split()[-1]] = []
        elif found:
            found[next(reversed(found))].append((word, rest))
    return found


def image_environment(stage: str = "chat4all") -> dict[str, str]:
    pairs = (part.partition("=") for word, rest in stages()[stage] if word == "ENV" for part in shlex.split(rest))
    return {name: value for name, _, value in pairs}


def copied() -> Iterator[str]:
    """What goes into the image from the repository."""
    for word, rest in instructions():
        if word == "COPY" and "--from=" not in rest:
            yield from (part for part in rest.split()[:-1] if not part.startswith("--"))


def test_hadolint_has_nothing_to_say() -> None:
    told = run("hadolint", "--no-color", DOCKERFILE)
    assert (told.returncode, told.stdout + told.stderr) == (0, "")


def test_hadolint_would_have_said_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && pip install django\nCMD python manage.py runserver\n")
    assert {"DL3007", "DL3042", "DL3025"} <= set(re.findall(r"DL\d+", run("hadolint", "--no-color", bad).stdout))


@pytest.mark.parametrize("stage", ["chat4all", "simulator"])
def test_the_image_runs_as_nobody_special_and_tells_its_health(stage: str) -> None:
    told = dict(stages()[stage])
    assert told["USER"] == "10001:10001"
    assert '["healthcheck"' in told["HEALTHCHECK"]
    assert "ENTRYPOINT" not in told
    commands.check(json.loads(told["CMD"]))  # JSON: no shell stands between a signal and the process
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert bases[0] == "${PYTHON}"
    assert re.fullmatch(r"PYTHON=python:3\.11\.\d+-slim-\w+", dict(instructions())["ARG"])
    assert not any("apt-get" in rest or rest.startswith("http") for _, rest in stages()[stage])


def test_variables_of_the_image_are_read_by_somebody() -> None:
    for stage in ("chat4all", "simulator"):
        assert set(image_environment(stage)) - IMAGES_OWN - variables.read_by_us() - {"HEALTH_PORT"} == set()


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*", "an allow-list: nothing gets in that nobody named"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(Path(source).match(rule) for rule in allowed), f".dockerignore keeps {source} out"


def test_what_runs_can_install_nothing(tmp_path: Path) -> None:
    """The environment is made without pip, by the builder's; Python's own goes from the stage below both images."""
    runs = [(stage, rest) for stage, told in stages().items() for word, rest in told if word == "RUN"]
    (made,) = [rest for _, rest in runs if "-m venv" in rest]
    subprocess.run(
        [sys.executable, *shlex.split(made)[1:-1], tmp_path / "venv"], check=True, capture_output=True, text=True
    )
    assert made.endswith(" /opt/venv")
    assert [path.name for path in (tmp_path / "venv").rglob("pip*")] == []
    installs = {stage: rest for stage, rest in runs if "pip" in rest and " install " in rest}
    assert set(installs) == {"hub-packages", "simulator-packages"}
    assert all(rest.startswith("pip --python /opt/venv/bin/python install ") for rest in installs.values())
    (removed,) = [rest for stage, rest in runs if stage == "runtime" and "uninstall" in rest]
    assert {"pip", "setuptools", "wheel"} <= set(removed.split())
    for image in ("chat4all", "simulator"):
        froms = [rest.split() for word, rest in instructions() if word == "FROM"]
        assert ["runtime", "AS", image] in froms


def test_the_copied_code_is_all_that_it_needs(tmp_path: Path) -> None:
    """Laid out as in the image, it collects its static files, and the API, the gateway and the workers import."""
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        elif source == "manage.py":
            shutil.copy2(ROOT / source, tmp_path / source)
    environment = {
        "PATH": "/usr/bin:/bin",
        "STATE_DIR": str(tmp_path / "state"),
        "STATIC_ROOT": str(tmp_path / "static"),
    }
    collected = "django.setup(); call_command('collectstatic', '--noinput', '--verbosity', '0')"
    imports = "chat4all_project.wsgi, chat4all_project.asgi, chat4all_project.celery, messaging.tasks"
    commands_ = "load_command_class('realtime', 'run_gateway'), load_command_class('messaging', 'run_bridge')"
    program = (
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'chat4all_project.settings'; import django; "
        "from django.core.management import call_command, load_command_class; "
        f"{collected}; import {imports}; {commands_}; import simulator.server"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "static" / "admin").is_dir()


def test_the_image_installs_what_its_code_imports() -> None:
    installed = {"prod": set(pinned("prod")), "local": set(pinned("local"))}
    packages = {source for source in copied() if (ROOT / source).is_dir()}
    of_module = packages_distributions()
    missing = set()
    for package in packages:
        known = installed["local" if package == "simulator" else "prod"]
        for path in (ROOT / package).rglob("*.py"):
            for module in imported(path) - packages - set(sys.stdlib_module_names):
                owners = {normalized(owner) for owner in of_module.get(module, [module])}
                if not owners & known:
                    missing.add(f"{path.relative_to(ROOT)}: {module}")
    assert missing == set()


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


# --- its health check -----------------------------------------------------------------------------------------------


def test_the_health_check_believes_nothing_but_200(httpd: Any) -> None:
    healthcheck: list[str | Path] = [sys.executable, DOCKER / "healthcheck"]

    def asked(path: str, port: int) -> tuple[int, str]:
        done = subprocess.run(
            [*healthcheck, path], env={"HEALTH_PORT": str(port)}, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    server = httpd({"/health": (200, "alive"), "/ready": (503, "Kafka does not answer")})
    assert asked("/health", server.port) == (0, "alive\n")
    assert asked("/ready", server.port) == (1, "Kafka does not answer\n")
    server.stop()
    assert asked("/health", server.port)[0] == 1


def test_topics_and_queues_are_known_to_this_test() -> None:
    """A channel more is a worker more: the compose file, Prometheus and the manifests have to learn of it."""
    assert {topics.channel_of(topic) for topic in wiring.work_topics()} - {None} <= {
        name.removeprefix("worker-") for name in services()
    }
