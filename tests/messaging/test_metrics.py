"""The list of metrics, and what is measured on a thread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

import core.health
import files.metrics
import messaging.metrics
import realtime.metrics
from accounts.models import Workspace
from connectors.errors import TransientDeliveryError
from core.errors import Unavailable
from core.metrics import Sampled
from demo.redis_server import RedisServer
from messaging import metrics, sampling, topics, wiring
from messaging.breakers import SharedBreakers
from messaging.eventlog.memory import MemoryLog
from messaging.models import ChannelAccount
from messaging.ports import NewRecord

MODULES = (core.health, files.metrics, messaging.metrics, realtime.metrics)
DECLARED: dict[str, Any] = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, Counter | Gauge | Histogram | Sampled)
}
UNITS = ("_total", "_seconds", "_bytes", "_records", "_state", "_owned", "_connections")
FEW = {
    "topic",
    "partition",
    "channel",
    "account",
    "outcome",
    "state",
    "status",
    "kind",
    "result",
    "source",
    "code",
    "part",
}


def families(metric: Any) -> list[tuple[str, str]]:
    return [(family.name, family.documentation) for family in metric.describe()]


@pytest.mark.parametrize("name", DECLARED)
def test_a_metric_is_named_as_prometheus_wants_it(name: str) -> None:
    metric = DECLARED[name]
    [(called, text)] = families(metric)
    called += "_total" if isinstance(metric, Counter) else ""
    assert re.fullmatch(r"chat4all(_[a-z]+)+", called)
    assert called.endswith(UNITS)
    assert text
    assert called.endswith("_total") is isinstance(metric, Counter)


@pytest.mark.parametrize("name", DECLARED)
def test_a_metric_has_labels_of_which_there_are_few(name: str) -> None:
    metric = DECLARED[name]
    labels = metric._family[2] if isinstance(metric, Sampled) else metric._labelnames
    assert set(labels) <= FEW


@pytest.mark.parametrize("name", [name for name, metric in DECLARED.items() if isinstance(metric, Gauge)])
def test_a_gauge_goes_with_its_process(name: str) -> None:
    gauge = DECLARED[name]
    assert isinstance(gauge, Gauge)
    assert gauge._multiprocess_mode.startswith("live")


def test_what_alerts_look_at_is_there_before_it_happens() -> None:
    metrics.start_at_zero(["zero-topic"], ["zero-channel"])
    for name, labels in (
        ("chat4all_dead_letters_total", {"topic": "zero-topic"}),
        ("chat4all_batches_redispatched_total", {"topic": "zero-topic", "state": "worker_lost"}),
        ("chat4all_records_processed_total", {"topic": "zero-topic", "outcome": "poison"}),
        ("chat4all_deliveries_total", {"channel": "zero-channel", "outcome": "ambiguous"}),
        ("chat4all_records_parked_total", {"channel": "zero-channel"}),
    ):
        assert REGISTRY.get_sample_value(name, labels) == 0


# --- lag -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> MemoryLog:
    log = MemoryLog()
    log.ensure_topics(wiring.all_topics())
    monkeypatch.setattr(wiring, "event_log", lambda: log)
    metrics.CONSUMER_LAG.set_all({})
    return log


def lags() -> dict[str, float]:
    [family] = metrics.CONSUMER_LAG.collect()
    return {f"{each.labels['topic']}:{each.labels['partition']}": each.value for each in family.samples}


def test_the_lag_of_a_partition_that_nobody_owns_is_seen(log: MemoryLog) -> None:
    [(source, _)] = log.append([NewRecord(topics.MESSAGES, "chat", b"1")])
    log.append([NewRecord(topics.MESSAGES, "chat", b"2")])
    sampling.measure_lag([topics.MESSAGES])
    assert lags() == {**{f"messages:{number}": 0.0 for number in range(3)}, f"messages:{source.partition}": 2.0}


def test_the_lag_is_what_is_not_committed(log: MemoryLog) -> None:
    class Owner:
        def assigned(self, _partitions: object) -> None: ...
        def revoked(self, _partitions: object) -> None: ...
        def lost(self, _partitions: object) -> None: ...

    [(source, first), _] = log.append(
        [NewRecord(topics.MESSAGES, "chat", b"1"), NewRecord(topics.MESSAGES, "chat", b"2")]
    )
    subscription = log.subscribe([topics.MESSAGES], group=wiring.GROUP, member="one", listener=Owner())
    while not subscription.poll(1):
        pass
    subscription.commit({source: first + 1})
    sampling.measure_lag([topics.MESSAGES])
    assert lags()[f"messages:{source.partition}"] == 1


def test_no_lag_is_made_up_while_the_log_is_away(log: MemoryLog) -> None:
    log.set_available(False)
    with pytest.raises(Unavailable):
        sampling.measure_lag([topics.MESSAGES])
    assert lags() == {}


def test_a_worker_watches_the_topics_of_its_queues() -> None:
    assert sampling.of_queues(["core"]) == (topics.MESSAGES, topics.STATUS_UPDATES)
    assert sampling.of_queues(["whatsapp"]) == ("whatsapp-outbound",)


# --- breakers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def breakers(bus_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedBreakers]:
    monkeypatch.setattr("messaging.breakers.REDIS_TIMEOUT_S", 20.0)  # a busy machine is no Redis that is away
    shared = SharedBreakers(bus_redis.url)
    shared._redis.flushall()
    monkeypatch.setattr(wiring, "breakers", lambda: shared)
    metrics.BREAKER_STATE.set_all({})
    yield shared
    shared.close()


def states() -> dict[str, float]:
    [family] = metrics.BREAKER_STATE.collect()
    return {f"{each.labels['channel']}:{each.labels['account']}": each.value for each in family.samples}


def add_account(account_id: str, *, active: bool = True) -> None:
    workspace = Workspace.objects.get(slug="default")
    ChannelAccount.objects.create(
        workspace=workspace, channel="whatsapp", account_id=account_id, credentials={}, is_active=active
    )


@pytest.mark.django_db
def test_every_active_account_shows_its_breaker_also_before_it_was_used(breakers: SharedBreakers) -> None:
    add_account("111")
    add_account("222")
    add_account("333", active=False)
    for _ in range(5):
        breakers.failure("whatsapp", "222", TransientDeliveryError("http_503"))
    sampling.measure_breakers()
    assert states() == {"whatsapp:111": 0, "whatsapp:222": 2}


@pytest.mark.django_db
def test_no_breaker_is_called_closed_while_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    add_account("111")
    nobody = SharedBreakers("redis://127.0.0.1:1/0")
    monkeypatch.setattr(wiring, "breakers", lambda: nobody)
    metrics.BREAKER_STATE.set_all({})
    sampling.measure_breakers()
    assert states() == {}
    nobody.close()
