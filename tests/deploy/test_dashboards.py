"""Each query of each dashboard, rule and alert has an answer on a running system that a real Prometheus scrapes."""

from __future__ import annotations

import itertools
import json
import math
import re
import runpy
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from prometheus_client import REGISTRY

import files.metrics  # noqa: F401 - all register their metrics
import messaging.metrics  # noqa: F401
import realtime.metrics  # noqa: F401
from demo.ports import HOST, free_ports
from demo.supervisor import LocalSystem
from tests.stack.servers import needed
from tests.town import Resident, Town, eventually, phone

ROOT: Final = Path(__file__).resolve().parents[2]
PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
GRAFANA: Final = ROOT / "deploy" / "grafana"
FILES: Final = sorted((GRAFANA / "dashboards").glob("*.json"))
GUIDE: Final = (ROOT / "docs" / "observability.md").read_text()
SCRAPE_S: Final = 2
WINDOW: Final = "20s"  # what Grafana would take for ten scrapes
ALERT: Final = re.compile(r"(?P<measure>.+) [<>] (?P<limit>[\d.]+)")

Json = dict[str, Any]


def dashboards() -> dict[str, Json]:
    return {file.stem: json.loads(file.read_text()) for file in FILES}


def panels(dashboard: Json) -> list[Json]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def rules() -> list[Json]:
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{dashboard['title']}: {panel['title']} {target['refId']}")
        for dashboard in dashboards().values()
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def resolved(expr: str) -> str:
    """With Grafana's variables filled in; `All` stands for ``.*``."""
    expr = expr.replace("$__rate_interval", WINDOW)
    return re.sub(r"\$\{?(view|topic|channel)\}?", ".*", expr)


# --- a Prometheus ----------------------------------------------------------------------------------------------------


def config_for(system: LocalSystem, own_port: int) -> Json:
    """The configuration that is deployed, with compose's names replaced by where this system's processes listen."""
    config: Json = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] |= {f"{each}_interval": f"{SCRAPE_S}s" for each in ("scrape", "evaluation")}
    config["global"]["scrape_timeout"] = f"{SCRAPE_S}s"
    config["rule_files"] = [str(PROMETHEUS / each) for each in config["rule_files"]]
    for job in config["scrape_configs"]:
        found = job.pop("dns_sd_configs", None)
        targets = [f"{HOST}:{own_port}"] if found is None else _replicas(system, found[0]["names"][0])
        job["static_configs"] = [{"targets": targets}]
    return config


def _replicas(system: LocalSystem, service: str) -> list[str]:
    names = [name for name in system.processes if re.fullmatch(rf"{service}(-\d+)?", name)]
    return [urlsplit(system.ready_url(name)).netloc for name in names]


class Prometheus:
    """A real one, in a folder of its own."""

    def __init__(self, folder: Path, system: LocalSystem) -> None:
        [port] = free_ports(1)
        self._config = folder / "prometheus.yml"
        self._config.write_text(yaml.safe_dump(config_for(system, port)))
        self._log = folder / "log"
        self._command = [
            *(needed("prometheus"), f"--config.file={self._config}", f"--storage.tsdb.path={folder / 'data'}"),
            f"--web.listen-address={HOST}:{port}",
        ]
        self._http = httpx.Client(base_url=f"http://{HOST}:{port}", timeout=10)

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            eventually(self._is_ready, within_s=60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        try:
            return self._http.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def values(self, expr: str) -> list[float]:
        """The numbers of an instant query. Fails when Prometheus cannot read it."""
        answer = self._http.get("/api/v1/query", params={"query": expr})
        assert answer.status_code == 200, f"{expr}: {answer.text}"
        return [float(each["value"][1]) for each in answer.json()["data"]["result"]]

    def get(self, path: str) -> Any:
        return self._http.get(f"/api/v1/{path}").json()["data"]


@dataclass
class Traffic:
    """Everything that the dashboards show happens again and again: messages both ways, files, sockets, receipts."""

    town: Town
    alice: Resident
    bob: Resident
    account: str
    done: int = 0
    error: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        if self.error:
            raise self.error[0]

    def _run(self) -> None:
        try:
            with self.bob.socket():
                for number in itertools.count():
                    self._once(number)
                    self.done += 1
                    if self._stop.wait(1):
                        return
        except BaseException as error:  # told by the test
            self.error.append(error)

    def _once(self, number: int) -> None:
        chat, person = f"metrics-{self.account}", f"whatsapp:+{phone()}"
        file = self.alice.api.post(
            "/v1/files", files={"file": ("cat.png", b"\x89PNG\r\n\x1a\n" + bytes(2000))}, data={"conversation_id": chat}
        )
        assert file.status_code == 201, file.text
        self.alice.post(chat, f"to a user {number}", self.bob.user_id)
        self.alice.post(f"{chat}-{person}", f"to a phone {number}", person)
        self.town.says("whatsapp", self.account, person.partition("+")[2], f"back {number}")


@pytest.fixture(scope="module", params=["local_system", pytest.param("cluster_system", marks=pytest.mark.cluster)])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A running system with traffic, and the Prometheus that has seen all of it."""
    needed("prometheus")
    system = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("prometheus")
    with Town(system) as town, Prometheus(folder, system) as prometheus:
        alice, bob = town.resident("alice"), town.resident("bob")
        with Traffic(town, alice, bob, town.account("whatsapp", alice)) as traffic:
            eventually(lambda: traffic.error or traffic.done >= 3, within_s=60)
            yield prometheus


pytestmark = [pytest.mark.xdist_group("system"), pytest.mark.timeout(240)]


# --- what has to be seen ---------------------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.parametrize("expr", queries())
def test_a_panel_shows_something(watched: Prometheus, expr: str) -> None:
    def numbers() -> list[float]:
        return [value for value in watched.values(resolved(expr)) if not math.isnan(value)]

    eventually(numbers, within_s=60)


@pytest.mark.e2e
@pytest.mark.parametrize("rule", [rule for rule in rules() if "record" in rule], ids=lambda rule: rule["record"])
def test_a_recording_rule_records(watched: Prometheus, rule: Mapping[str, str]) -> None:
    eventually(lambda: watched.values(rule["record"]), within_s=60)


@pytest.mark.e2e
@pytest.mark.parametrize("rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: rule["alert"])
def test_an_alert_measures_something(watched: Prometheus, rule: Mapping[str, str]) -> None:
    """Healthy systems raise none, so what is asked for is the measure without its limit."""
    found = ALERT.fullmatch(rule["expr"])
    assert found, "an alert's expression is: <measure> <comparison> <number>"
    eventually(lambda: watched.values(found["measure"]), within_s=60)


@pytest.mark.e2e
def test_every_service_is_scraped_and_no_rule_fails(watched: Prometheus) -> None:
    def all_up() -> bool:
        return {target["health"] for target in watched.get("targets")["activeTargets"]} == {"up"}

    eventually(all_up)
    eventually(
        lambda: {rule["health"] for group in watched.get("rules")["groups"] for rule in group["rules"]} == {"ok"}
    )
    jobs = {target["labels"]["job"] for target in watched.get("targets")["activeTargets"]}
    assert jobs == {
        job["job_name"] for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    }


@pytest.mark.e2e
def test_metrics_have_few_series_and_no_ids(watched: Prometheus) -> None:
    """Labels that grow with users or messages fill a Prometheus."""
    names: list[str] = watched.get("label/__name__/values")
    ours = [name for name in names if name.startswith(("chat4all_", "django_http_"))]
    assert len(ours) > 40
    assert max(sum(watched.values(f"count({name})")) for name in ours) < 500
    values = {
        value
        for label in watched.get("labels")
        if label not in {"account", "le"}
        for value in watched.get(f"label/{label}/values")
    }
    assert [value for value in values if re.search(r"user_|[0-9a-f]{8}-[0-9a-f]{4}|\d{9,}", value)] == []


# --- what holds without a running system -----------------------------------------------------------------------------


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = Path(needed("prometheus")).resolve().with_name("promtool")
    return subprocess.run([tool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    done = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration_for_kubernetes(tmp_path: Path) -> None:
    """With another way to find pods: distributions build theirs without Kubernetes'."""
    config: Json = yaml.safe_load((PROMETHEUS / "kubernetes.yml").read_text())
    config["rule_files"] = [str(PROMETHEUS / each) for each in config["rule_files"]]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": ["localhost:9100"]} for _ in job.pop("kubernetes_sd_configs")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    done = promtool("check", "config", "--lint=all", "--lint-fatal", str(tmp_path / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    done = promtool("test", "rules", "tests/alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_the_four_dashboards_of_the_reference() -> None:
    assert {each["title"] for each in dashboards().values()} == {
        "System Overview",
        "API Service",
        "Router Worker",
        "Connectors",
    }
    assert all(each["uid"] == name for name, each in dashboards().items())


def test_the_committed_dashboards_are_what_the_script_writes() -> None:
    script = runpy.run_path(str(GRAFANA / "make_dashboards.py"))
    written = {each.uid: script["text"](each) for each in script["DASHBOARDS"]}
    assert {file.stem: file.read_text() for file in FILES} == written


@pytest.mark.parametrize("name", dashboards())
def test_every_panel_says_what_it_shows(name: str) -> None:
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    dashboard = dashboards()[name]
    assert dashboard["schemaVersion"] >= 39
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {source["uid"]}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    used = set(re.findall(r"\$(\w+)", json.dumps(dashboard["panels"]))) - {"__rate_interval"}
    assert used == {variable["name"] for variable in dashboard["templating"]["list"]}


@pytest.mark.parametrize("name", dashboards())
def test_panels_do_not_cover_one_another(name: str) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboards()[name]["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        mine = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not mine & cells, panel["title"]
        cells |= mine


MEASURED: Final = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def test_panels_and_rules_ask_for_metrics_and_jobs_that_there_are() -> None:
    """One that ends in ``or vector(0)`` would show a 0 for what nobody measures."""
    measured = {family.name + end for family in REGISTRY.collect() for end in MEASURED.get(family.type, ())}
    jobs = {each["job_name"] for each in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]}
    asked = [*(query.values[0] for query in queries()), *(rule["expr"] for rule in rules())]
    assert {name for expr in asked for name in re.findall(r"\bchat4all_\w+", expr)} - measured == set()
    assert {
        name for expr in asked for found in re.findall(r'job=~?"([^"$]+)"', expr) for name in found.split("|")
    } <= jobs


@pytest.mark.parametrize("rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: rule["alert"])
def test_the_guide_says_what_to_do_about_an_alert(rule: Json) -> None:
    assert f"### {rule['alert']}\n" in GUIDE
    assert rule["annotations"]["runbook"] == f"docs/observability.md#{rule['alert'].lower()}"
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_guide_explains_every_metric() -> None:
    ours = {family.name for family in REGISTRY.collect() if family.name.startswith("chat4all_")}
    explained = set(re.findall(r"`(chat4all_\w+?)(?:_total)?`", GUIDE))
    assert ours == explained
