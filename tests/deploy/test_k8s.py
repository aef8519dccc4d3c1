"""deploy/k8s: rendered by kubectl, held against the schemas of Kubernetes and KEDA, and against our own code."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from messaging import topics, wiring
from tests.deploy import commands, variables
from tests.deploy.programs import ROOT, run
from tests.deploy.test_docker import HEALTH_PORT, image_environment, load_settings, settings

K8S = ROOT / "deploy" / "k8s"
SCHEMAS = Path(__file__).parent / "schemas"
OVERLAYS = ("staging", "production")
VERSION = kubernetes_validate.latest_version()
PROMETHEUS = ROOT / "deploy" / "prometheus"
COMPONENT = "app.kubernetes.io/component"
MIB = 1024 * 1024
META = "__meta_kubernetes_pod_label_"
FOR_KEDA = {"KAFKA_BOOTSTRAP_SERVERS"}  # which reads it from the pods that it scales

Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    told = run("kubectl", "kustomize", K8S / "overlays" / overlay)
    assert told.returncode == 0, told.stderr
    assert "deprecated" not in told.stderr.lower()
    return tuple(yaml.safe_load_all(told.stdout))


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> tuple[Manifest, ...]:
    return rendered(request.param)


def of(manifests: tuple[Manifest, ...], *kinds: str) -> Iterator[Manifest]:
    return (each for each in manifests if each["kind"] in kinds)


def pods(manifests: tuple[Manifest, ...]) -> Iterator[tuple[str, Manifest]]:
    for each in of(manifests, "Deployment", "StatefulSet", "Job"):
        yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers(manifests: tuple[Manifest, ...]) -> Iterator[tuple[str, Manifest]]:
    for name, pod in pods(manifests):
        for each in (*pod.get("initContainers", ()), *pod["containers"]):
            yield f"{name}/{each['name']}", each


# --- against the schemas ------------------------------------------------------------------------------------------


def validate(manifest: Manifest) -> None:
    """Strictly: a field that the schema does not know is an error, and so is a kind without a schema."""
    if manifest["apiVersion"] == "keda.sh/v1alpha1":
        jsonschema.Draft202012Validator(keda(manifest["kind"])).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


@cache
def keda(kind: str) -> dict[str, Any]:
    (path,) = SCHEMAS.glob(f"keda.sh_{kind.lower()}s.yaml")
    (version,) = yaml.safe_load(path.read_text())["spec"]["versions"]
    schema: dict[str, Any] = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def closed(schema: Any) -> Any:
    """No property that is not listed, as the API server prunes them."""
    if isinstance(schema, dict):
        inside = {name: closed(value) for name, value in schema.items()}
        return {"additionalProperties": False, **inside} if isinstance(schema.get("properties"), dict) else inside
    return [closed(each) for each in schema] if isinstance(schema, list) else schema


def test_every_manifest_is_valid(manifests: tuple[Manifest, ...]) -> None:
    assert len(manifests) > 25
    for each in manifests:
        validate(each)


BROKEN: dict[str, tuple[str, list[str | int], Any]] = {
    "a misspelt field": ("Deployment", ["spec", "template", "spec", "containers", 0, "imagePullPolice"], "Always"),
    "text where a number belongs": ("StatefulSet", ["spec", "replicas"], "two"),
    "a misspelt field of a policy": ("NetworkPolicy", ["spec", "policyType"], ["Ingress"]),
    "a field that KEDA has not": ("ScaledObject", ["spec", "maxReplicas"], 3),
    "a number where KEDA wants text": ("ScaledObject", ["spec", "triggers", 0, "metadata", "lagThreshold"], 500),
    "an unknown kind": ("Service", ["kind"], "Servise"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_manifest_is_refused(broken: str) -> None:
    kind, (*path, last), value = BROKEN[broken]
    manifest = yaml.safe_load(yaml.safe_dump(next(of(rendered("production"), kind))))
    inner: Any = manifest
    for step in path:
        inner = inner[step]
    inner[last] = value
    with pytest.raises(
        (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError, jsonschema.ValidationError)
    ):
        validate(manifest)


# --- against our code ---------------------------------------------------------------------------------------------


def test_every_command_is_one_that_the_image_has(manifests: tuple[Manifest, ...]) -> None:
    for name, each in containers(manifests):
        assert "command" not in each, name
        commands.check(each["args"])


def test_each_queue_has_workers_that_scale_with_its_topics(manifests: tuple[Manifest, ...]) -> None:
    queues = {
        name: commands.check(pod["containers"][0]["args"]).queue for name, pod in pods(manifests) if "worker" in name
    }
    lag = {
        each["spec"]["scaleTargetRef"]["name"]: {trigger["metadata"]["topic"] for trigger in each["spec"]["triggers"]}
        for each in of(manifests, "ScaledObject")
    }
    assert {
        topic: {name for name, of_worker in queues.items() if wiring.queue_of(topic) == of_worker}
        for topic in wiring.work_topics()
    } == {topic: {name for name, followed in lag.items() if topic in followed} for topic in wiring.work_topics()}
    assert all(queues.values())
    groups = {
        t["metadata"]["consumerGroup"] for each in of(manifests, "ScaledObject") for t in each["spec"]["triggers"]
    }
    assert groups == {wiring.GROUP}
    assert {topics.INBOUND, topics.MESSAGES, topics.STATUS_UPDATES} <= set().union(*lag.values())


def told(manifests: tuple[Manifest, ...]) -> dict[str, str]:
    """What a process gets, with the secrets of a compose installation in place of those that the example leaves out."""
    (config,) = of(manifests, "ConfigMap")
    secret = next(yaml.safe_load_all((K8S / "secret.example.yaml").read_text()))["stringData"]
    return {**config["data"], **{name: value or settings()[name] for name, value in secret.items()}}


def test_every_variable_is_read_by_somebody(manifests: tuple[Manifest, ...]) -> None:
    names = set(told(manifests)) | {each["name"] for _, c in containers(manifests) for each in c["env"]}
    expanded = {name for _, c in containers(manifests) for name in re.findall(r"\$\((\w+)\)", " ".join(c["args"]))}
    assert names - variables.read_by_us() - FOR_KEDA - expanded == set()
    assert expanded <= names


def test_a_production_process_starts_with_what_it_is_told(manifests: tuple[Manifest, ...], tmp_path: Path) -> None:
    environment = {**image_environment(), **told(manifests), "SERVICE": "api"}
    assert environment["CHAT4ALL_ENV"] == "production"
    assert load_settings(environment, tmp_path)["service"] == "api"


def test_keda_asks_the_kafka_that_we_write_to(manifests: tuple[Manifest, ...]) -> None:
    environment = told(manifests)
    assert f"kafka://{environment['KAFKA_BOOTSTRAP_SERVERS']}" in environment["EVENT_LOG_URL"]


def test_probes_and_scrapes_ask_the_port_that_the_process_opens(manifests: tuple[Manifest, ...]) -> None:
    image = image_environment()
    for each in of(manifests, "Deployment", "StatefulSet"):
        template = each["spec"]["template"]
        (container,) = template["spec"]["containers"]
        parsed = commands.check(container["args"])
        opened = {"granian": int(image["API_HEALTH_PORT"]), "run_worker": int(image["HEALTH_PORT"])}
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["health"] == opened.get(parsed.kind, parsed.health_port) == HEALTH_PORT
        assert ports.get("http") == parsed.port
        assert template["metadata"]["annotations"]["prometheus.io/port"] == str(HEALTH_PORT)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == "health"
            assert container[probe]["httpGet"]["path"] in {"/health", "/ready"}
        assert container["livenessProbe"]["httpGet"]["path"] == "/health", (
            "a server that is away is no reason to restart"
        )


def test_prometheus_calls_pods_by_the_jobs_that_rules_and_dashboards_ask_for(manifests: tuple[Manifest, ...]) -> None:
    config = yaml.safe_load((PROMETHEUS / "kubernetes.yml").read_text())
    (scrape,) = config["scrape_configs"]
    rules = {rule.get("target_label", rule.get("action")): rule for rule in scrape["relabel_configs"]}
    assert rules["keep"]["source_labels"] == ["__meta_kubernetes_pod_container_port_name"]
    assert rules["job"]["source_labels"] == [META + re.sub(r"\W", "_", COMPONENT)]
    found = set()
    for each in of(manifests, "Deployment", "StatefulSet"):
        template = each["spec"]["template"]
        (container,) = template["spec"]["containers"]
        assert [port["name"] for port in container["ports"]].count(rules["keep"]["regex"]) == 1
        found.add(template["metadata"]["labels"][COMPONENT])
    compose = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert found == {job["job_name"] for job in compose["scrape_configs"]} - {"simulator", "prometheus"}
    assert {name: config[name] for name in ("global", "rule_files")} == {
        name: compose[name] for name in ("global", "rule_files")
    }
    assert scrape["kubernetes_sd_configs"][0]["namespaces"]["names"] == ["chat4all"]


# --- against one another ------------------------------------------------------------------------------------------


def test_what_is_referred_to_exists(manifests: tuple[Manifest, ...]) -> None:
    made = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    secrets = {each["metadata"]["name"] for each in yaml.safe_load_all((K8S / "secret.example.yaml").read_text())}
    for name, pod in pods(manifests):
        assert ("ServiceAccount", pod["serviceAccountName"]) in made, name
    for name, each in containers(manifests):
        for source in each["envFrom"]:
            kind, ref = (
                ("ConfigMap", source["configMapRef"]) if "configMapRef" in source else ("Secret", source["secretRef"])
            )
            assert (kind, ref["name"]) in made or (kind == "Secret" and ref["name"] in secrets), f"{name}: {ref}"
    for each in of(manifests, "ScaledObject"):
        assert ("Deployment", each["spec"]["scaleTargetRef"]["name"]) in made
        for trigger in each["spec"]["triggers"]:
            assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in made
    for each in of(manifests, "TriggerAuthentication"):
        assert {ref["name"] for ref in each["spec"]["secretTargetRef"]} <= secrets
    for each in of(manifests, "HorizontalPodAutoscaler"):
        assert (each["spec"]["scaleTargetRef"]["kind"], each["spec"]["scaleTargetRef"]["name"]) in made
    for each in of(manifests, "StatefulSet"):
        assert ("Service", each["spec"]["serviceName"]) in made
    ports = {(s["metadata"]["name"], p["name"]) for s in of(manifests, "Service") for p in s["spec"]["ports"]}
    for each in of(manifests, "Ingress"):
        for path in each["spec"]["rules"][0]["http"]["paths"]:
            service = path["backend"]["service"]
            assert (service["name"], service["port"]["name"]) in ports


def test_every_selector_finds_pods(manifests: tuple[Manifest, ...]) -> None:
    labels = [
        each["spec"]["template"]["metadata"]["labels"] for each in of(manifests, "Deployment", "StatefulSet", "Job")
    ]
    for each in of(manifests, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        selector = each["spec"]["podSelector" if each["kind"] == "NetworkPolicy" else "selector"]
        wanted = selector if each["kind"] == "Service" else selector.get("matchLabels", {})
        found = [have for have in labels if wanted.items() <= have.items()]
        for rule in selector.get("matchExpressions", ()) if each["kind"] != "Service" else ():
            found = [have for have in found if have.get(rule["key"]) in rule["values"]]
        assert found, each["metadata"]["name"]


def test_what_scales_by_itself_has_no_fixed_number(manifests: tuple[Manifest, ...]) -> None:
    """Or each roll-out would take back what the autoscaler did."""
    scaled = {e["spec"]["scaleTargetRef"]["name"] for e in of(manifests, "HorizontalPodAutoscaler", "ScaledObject")}
    for each in of(manifests, "Deployment", "StatefulSet"):
        assert ("replicas" in each["spec"]) == (each["metadata"]["name"] not in scaled)


def test_everything_that_runs_may_be_drained_one_by_one(manifests: tuple[Manifest, ...]) -> None:
    running = {each["metadata"]["name"] for each in of(manifests, "Deployment", "StatefulSet")}
    assert {each["metadata"]["name"] for each in of(manifests, "PodDisruptionBudget")} == running


def test_pods_may_do_as_little_as_possible(manifests: tuple[Manifest, ...]) -> None:
    for name, pod in pods(manifests):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for name, each in containers(manifests):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert {"cpu", "memory"} <= each["resources"]["requests"].keys()
        assert "memory" in each["resources"]["limits"]
        mounted = {mount["mountPath"] for mount in each["volumeMounts"]}
        written = (image_environment()[variable] for variable in ("STATE_DIR", "PROMETHEUS_MULTIPROC_DIR"))
        assert all(any(path == at or path.startswith(f"{at}/") for at in mounted) for path in written)


def test_images_are_pinned_and_none_is_forgotten(manifests: tuple[Manifest, ...]) -> None:
    for name, each in containers(manifests):
        assert re.fullmatch(r"registry\.example\.com/chat4all:\d+\.\d+\.\d+[-.\w]*", each["image"]), name


def test_nothing_gets_in_or_out_that_no_policy_names(manifests: tuple[Manifest, ...]) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of(manifests, "NetworkPolicy")}
    closing = policies.pop("nothing-by-default")
    assert closing["policyTypes"] == ["Ingress", "Egress"]
    assert not closing.keys() & {"ingress", "egress"}
    opened = {port["port"] for spec in policies.values() for rule in spec.get("ingress", ()) for port in rule["ports"]}
    assert opened == {8082, 8085, HEALTH_PORT}
    leaving = {port["port"] for spec in policies.values() for rule in spec.get("egress", ()) for port in rule["ports"]}
    assert leaving == {53, 443, 5432, 6379, 9042, 9092}
    (internet,) = policies["internet"]["egress"]
    assert {"10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"} <= set(internet["to"][0]["ipBlock"]["except"])


def test_secrets_are_named_and_never_told() -> None:
    for path in (K8S / "base").rglob("*.yaml"):
        assert "kind: Secret\n" not in path.read_text(), path
    for overlay in OVERLAYS:
        assert not [*of(rendered(overlay), "Secret")]
    secret = next(yaml.safe_load_all((K8S / "secret.example.yaml").read_text()))["stringData"]
    assert [secret[name] for name in ("SECRET_KEY", "CHANNEL_SECRETS_KEY", "JWT_PRIVATE_KEY")] == ["", "", ""]


def phase_of(manifest: Manifest) -> str:
    found: str = manifest["metadata"]["labels"]["chat4all.dev/phase"]
    return found


def test_phases_leave_nothing_out(manifests: tuple[Manifest, ...]) -> None:
    """`kubectl apply -l chat4all.dev/phase=setup` and so on: together they are everything."""
    assert {phase_of(each) for each in manifests} == {"setup", "workers", "bridges", "edge"}
    settings_ = ("Namespace", "ConfigMap", "ServiceAccount", "NetworkPolicy", "Job")
    assert {phase_of(each) for each in of(manifests, *settings_)} == {"setup"}
    assert {phase_of(each) for each in of(manifests, "Ingress")} == {"edge"}
    assert {phase_of(each) for each in of(manifests, "ScaledObject", "TriggerAuthentication")} == {"workers"}


def test_an_upgrade_goes_from_workers_over_bridges_to_the_edge(manifests: tuple[Manifest, ...]) -> None:
    """As docs/deployment.md wants it: who reads records knows new kinds of them before somebody writes one."""
    phases: dict[str, set[str]] = {}
    for each in of(manifests, "Deployment", "StatefulSet"):
        phases.setdefault(phase_of(each), set()).add(each["metadata"]["name"])
    workers = {name for name, _ in pods(manifests) if name.startswith("worker-")}
    assert phases == {"workers": workers, "bridges": {"bridge"}, "edge": {"api", "gateway"}}


UPGRADE = [
    "delete", "apply setup", "wait",
    "apply workers", "rollout workers", "apply bridges", "rollout bridges", "apply edge", "rollout edge",
]  # fmt: skip


@pytest.mark.parametrize("fails", ["nothing", "wait", "apply workers", "rollout workers", "rollout bridges"])
def test_the_documented_upgrade_goes_on_when_a_phase_is_done(fails: str, tmp_path: Path) -> None:
    """The commands of docs/deployment.md as they stand, with a kubectl that writes down what it is asked."""
    guide = (ROOT / "docs" / "deployment.md").read_text()
    (script,) = (block for block in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL) if "kubectl apply" in block)
    asked, verb = tmp_path / "asked", fails.replace(" ", "*phase=")
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$*" >> {asked}\ncase "$*" in *{verb}*) exit 1;; esac\n')
    kubectl.chmod(0o755)
    subprocess.run(["/bin/sh", "-c", script], env={"PATH": str(tmp_path)}, check=False)
    steps = [
        " ".join(re.findall(r"\b(?:delete|apply|wait|rollout)\b|(?<=phase=)\w+", line))
        for line in asked.read_text().splitlines()
    ]
    assert steps == (UPGRADE[: UPGRADE.index(fails) + 1] if fails in UPGRADE else UPGRADE)


def test_the_ingress_and_the_settings_agree(manifests: tuple[Manifest, ...]) -> None:
    (ingress,) = of(manifests, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    environment = told(manifests)
    assert environment["ALLOWED_HOSTS"] == rule["host"] == ingress["spec"]["tls"][0]["hosts"][0]
    assert environment["API_URL"] == f"https://{rule['host']}"
    sockets = [p["path"] for p in rule["http"]["paths"] if p["backend"]["service"]["name"] == "gateway"]
    assert sockets == ["/ws", "/ws/"]
    assert environment["GATEWAY_URL"] == f"wss://{rule['host']}/ws"
    assert ingress["metadata"]["annotations"]["nginx.org/websocket-services"] == "gateway"
    most = int(environment["MAX_FILE_BYTES"])
    assert ingress["metadata"]["annotations"]["nginx.org/client-max-body-size"] == f"{most // MIB + 1}m"


def test_uploads_of_all_threads_at_once_fit_into_their_volume(manifests: tuple[Manifest, ...]) -> None:
    """A pod that fills more of it is evicted, and no budget is asked."""
    [api] = [each for each in of(manifests, "Deployment") if each["metadata"]["name"] == "api"]
    pod = api["spec"]["template"]["spec"]
    arguments = dict(each.split("=") for each in pod["containers"][0]["args"] if "=" in each)
    threads = int(arguments["--workers"]) * int(arguments["--blocking-threads"])
    [volume] = [each for each in pod["volumes"] if each["name"] == "state"]
    room = int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024 * MIB
    assert threads * int(told(manifests)["MAX_FILE_BYTES"]) < room


def test_hsts_is_left_to_the_api(manifests: tuple[Manifest, ...]) -> None:
    """The controller's replaces it: for 30 days in place of a year, and always with `preload`."""
    (ingress,) = of(manifests, "Ingress")
    assert not [name for name in ingress["metadata"]["annotations"] if "hsts" in name]


def test_an_overlay_that_does_not_render_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    told = run("kubectl", "kustomize", tmp_path, env={"HOME": os.devnull})
    assert told.returncode != 0
    assert "nowhere.yaml" in told.stderr
