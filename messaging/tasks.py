"""The only place that knows Celery: one task runs a batch, one resumes what is parked.

Celery is an executor here and nothing else: early ack, no results, no retries, no ETA. What it loses the bridge
dispatches again.
"""

from __future__ import annotations

import functools
import itertools
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
from billiard.exceptions import WorkerLostError
from celery import Celery, Task, shared_task
from celery.utils.nodenames import host_format
from celery.worker.request import Request
from django.conf import settings
from django.db import InterfaceError, OperationalError, connections
from django.utils.module_loading import import_string
from kombu.exceptions import KombuError
from redis import RedisError

from core.errors import Unavailable
from messaging import metrics, topics, tracing, wiring
from messaging.dispatch import HARD_LIMIT_S, AllOf, BusWorker, Lease, Started, WorkItem
from messaging.errors import LeaseLost
from messaging.ports import ParkScope, TopicPartition
from messaging.services import batches, deliver, inbound, persist, statuses
from messaging.work import LaneId, Outcome, Verdict

logger = logging.getLogger(__name__)

BATCH_DEADLINE_S: Final = 5.0
EACH_BY_ITSELF_S: Final = 20.0  # of batches that broke together: no other begins then, or the task takes too long
MAX_FAILURES: Final = 3
RESUMED_TOGETHER: Final = 16  # conversations whose parked sends go at once, as in a batch
RUN_BATCH: Final = "messaging.run_batch"
RESUME_PARKED: Final = "messaging.resume_parked"
_ALONE: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_encode: Final = msgspec.json.Encoder().encode


@functools.cache
def worker() -> BusWorker:
    return BusWorker(settings.BUS_URL)


@functools.cache
def app() -> Celery:
    """Loaded on first use: most processes have no tasks."""
    found: Celery = import_string(settings.TASK_APP)
    return found


def run_worker(queue: str, *, name: str, processes: int) -> int:
    """Work until SIGTERM; what to exit with. Without celery's command line, which takes half a second to load."""
    running = app().Worker(
        hostname=host_format(f"{name}@%h"),
        queues=[queue],
        concurrency=processes,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    running.start()
    return running.exitcode or 0


def batch_task(lane: LaneId, epoch: str, reply_to: str) -> bytes:
    """A batch's task as a worker takes it off its queue.

    The message of Celery's protocol 2 (https://docs.celeryq.dev/en/stable/internals/protocol.html) in kombu's envelope
    for lists, so that the bridge puts a batch and its task on the bus in one step: `send_task` costs it more than all
    the rest of a dispatch.
    """
    task_id = str(uuid4())
    args = (lane.source.topic, lane.source.partition, lane.number, epoch, reply_to)
    return _encode(
        {
            "body": _encode((args, {}, _ALONE)).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"lang": "py", "task": RUN_BATCH, "id": task_id, "root_id": task_id},
            "properties": {
                "correlation_id": task_id,
                "delivery_tag": task_id,
                "delivery_info": {"exchange": "", "routing_key": wiring.queue_of(lane.source.topic)},
                "priority": 0,
            },
        }
    )


def send_resume(scopes: Sequence[ParkScope], again_at_ms: int) -> None:
    """Enqueue another try at what these conversations of one topic hold back, up to RESUMED_TOGETHER of them; one try,
    they are found due again then. Raises Unavailable."""
    topic, (first, *others) = scopes[0].topic, [str(each.conversation_id) for each in scopes]
    args, queue = (topic, first, again_at_ms, others), wiring.queue_of(topic)
    try:
        app().send_task(RESUME_PARKED, args=args, queue=queue, retry=False)
    except (KombuError, RedisError, OSError) as error:
        raise Unavailable(f"the broker does not answer ({type(error).__name__}); check BUS_URL") from error


class _BatchRequest(Request):
    """Runs in the worker's parent process: tells the bridge at once when the child died that held a batch."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        if not soft:
            self._report_death()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        error = exc_info.exception
        if isinstance(getattr(error, "exc", error), WorkerLostError):  # billiard wraps what it raises for a dead child
            self._report_death()
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _report_death(self) -> None:
        topic, partition, lane, epoch, reply_to = self.args
        try:
            worker().report_death(LaneId(TopicPartition(topic, partition), lane), epoch, reply_to=reply_to)
        except Unavailable:
            logger.warning("a lost batch could not be reported; its lease will lapse")


class _BatchTask(Task[Any, None]):
    Request = _BatchRequest  # type: ignore[assignment] # the stubs know only its dotted name


@shared_task(name=RUN_BATCH, base=_BatchTask, time_limit=HARD_LIMIT_S)
def run_batch(topic: str, partition: int, lane: int, epoch: str, reply_to: str) -> None:
    """Process a lane's batch, together with what waits of others, and answer per record; a stale dispatch does nothing
    and says nothing."""
    started = worker().start(LaneId(TopicPartition(topic, partition), lane), epoch, reply_to=reply_to)
    if started is None:
        return
    with ExitStack() as leases:
        held = [_Held(each, leases.enter_context(ExitStack())) for each in (started, *started.along)]
        if len(held) > 1 and _run_together(topic, held):
            return
        until_s = time.monotonic() + EACH_BY_ITSELF_S
        for each in held:
            with each.renewed:
                _run(topic, each.started, each.lease, is_late=time.monotonic() > until_s)


class _Held:
    """A batch in this worker's hands, and its lease, which is renewed until ``renewed`` ends."""

    def __init__(self, started: Started, renewed: ExitStack) -> None:
        self.started = started
        self.renewed = renewed
        self.lease = renewed.enter_context(worker().lease(started.lane, started.epoch, asked_s=started.asked_s))


def _run(topic: str, started: Started, lease: Lease, *, is_late: bool) -> None:
    """By itself; ``is_late``: there is no time left for it, the bridge hears that it was not started."""
    where, epoch = started.lane, started.epoch
    if is_late:
        worker().finish(where, epoch, reply_to=started.reply_to, outcomes={})
        return
    with _measured(topic, len(started.items)):
        try:
            outcomes = _outcomes(topic, started.items, owner=f"{where}@{epoch}", lease=lease)
        except LeaseLost:
            logger.warning("batch abandoned: its lease was lost", extra={"topic": topic})
            return
    if outcomes is None:
        worker().report_lost(where, epoch, reply_to=started.reply_to)
    else:
        worker().finish(where, epoch, reply_to=started.reply_to, outcomes=outcomes)


def _run_together(topic: str, held: Sequence[_Held]) -> bool:
    """Process batches of several lanes as one; False where that broke, or one of them went into other hands: nobody was
    told anything then, and each is to be run by itself, which repeats what this did of it."""
    numbers = itertools.count()
    renumbered = [(each.started, [replace(item, number=next(numbers)) for item in each.started.items]) for each in held]
    items = [item for _, its in renumbered for item in its]
    with _measured(topic, len(items)):
        try:
            outcomes = _or_away(topic, items, owner="", lease=AllOf([each.lease for each in held]))
        except LeaseLost:
            return False
        except Exception:
            logger.exception("batches failed together", extra={"topic": topic, "records": len(items)})
            return False
    worker().finish_all(
        (each, {item.record.offset: outcomes[item.number] for item in its if item.number in outcomes})
        for each, its in renumbered
    )
    return True


@contextmanager
def _measured(topic: str, records: int) -> Iterator[None]:
    metrics.BATCH_RECORDS.labels(topic).observe(records)
    with metrics.BATCH_SECONDS.labels(topic).time():
        yield


def _outcomes(topic: str, items: list[WorkItem], *, owner: str, lease: Lease) -> dict[int, Outcome] | None:
    """What became of the records; None when one of several broke the batch: the bridge halves it until it stands alone.

    Raises LeaseLost.
    """
    try:
        return _or_away(topic, items, owner=owner, lease=lease)
    except LeaseLost:
        raise
    except Exception as error:  # a bug of ours, or a value that some part does not take: it must not stop the others
        alone = len(items) == 1
        with tracing.about(items[0].record) if alone else nullcontext():
            logger.exception("a batch failed", extra={"topic": topic, "records": len(items)})
        if not alone:
            return None
        [item] = items
        return {item.number: _broken(item, error)}


def _or_away(topic: str, items: list[WorkItem], *, owner: str, lease: batches.Lease) -> dict[int, Outcome]:
    """While a part is away all of them wait. Raises LeaseLost, and whatever a record of them leads to."""
    try:
        return _process(topic, items, owner=owner, lease=lease)
    except (Unavailable, OperationalError, InterfaceError) as error:
        logger.warning("a part is away, the batch waits", extra={"topic": topic, "error": _told(error)})
        return {item.number: batches.AWAY for item in items}


def _broken(item: WorkItem, error: Exception) -> Outcome:
    """Poison, unless it was tried only once or twice."""
    if item.attempts + 1 >= MAX_FAILURES:
        return Outcome(Verdict.POISON, reason=type(error).__name__)
    return Outcome(Verdict.RETRY, after_s=2.0**item.attempts, reason=type(error).__name__)


def _told(error: Exception) -> str:
    return error.detail if isinstance(error, Unavailable) else type(error).__name__


def _process(topic: str, items: list[WorkItem], *, owner: str, lease: batches.Lease) -> dict[int, Outcome]:
    store, recent = wiring.message_store(), wiring.recent_messages()
    match topic:
        case topics.MESSAGES:
            return persist.persist(
                items,
                store=store,
                log=wiring.event_log(),
                notify=wiring.notify(),
                lease=lease,
                recent=recent,
                deadline_s=_deadline_s(),
            )
        case topics.STATUS_UPDATES:
            return statuses.apply_statuses(items, store=store, notify=wiring.notify(), lease=lease, recent=recent)
        case topics.INBOUND:
            return inbound.resolve(items, wiring.inbound(), lease=lease, deadline_s=_deadline_s())
        case _:
            return deliver.deliver(
                items, wiring.delivery(_channel(topic)), owner=owner, lease=lease, deadline_s=_deadline_s()
            )


@shared_task(name=RESUME_PARKED, time_limit=HARD_LIMIT_S)
def resume_parked(topic: str, conversation_id: str, again_at_ms: int, others: Sequence[str] = ()) -> None:
    """Try again what these conversations hold back on a channel, each by itself and all of them at once."""
    scopes = [ParkScope(topic, UUID(each)) for each in (conversation_id, *others)]
    ours, bus = wiring.delivery(_channel(topic)), worker()  # before the threads, of which each would make its own
    with ThreadPoolExecutor(len(scopes), thread_name_prefix="resume") as pool:
        for tried in [pool.submit(_resume, scope, again_at_ms, ours, bus) for scope in scopes]:
            tried.result()


def _resume(scope: ParkScope, again_at_ms: int, ours: deliver.Delivery, bus: BusWorker) -> None:
    try:
        _try_again(scope, again_at_ms, ours, bus)
    finally:
        connections.close_all()  # they are this thread's, which ends


def _try_again(scope: ParkScope, again_at_ms: int, ours: deliver.Delivery, bus: BusWorker) -> None:
    topic = scope.topic
    where = LaneId(TopicPartition(topic, -1), scope.conversation_id.int & 0x7FFFFFFF)
    with bus.solo_lease(where) as lease:
        if lease is None:
            return  # another worker is at it
        # An owner of its own for each try: a predecessor that died while sending must look abandoned, not like us.
        owner = f"parked:{topic}:{scope.conversation_id}:{secrets.token_hex(4)}"
        try:
            deliver.resume_parked(
                scope,
                ours,
                again_at_ms=again_at_ms,
                owner=owner,
                lease=lease,
                deadline_s=_deadline_s(),
            )
        except (LeaseLost, Unavailable) as error:
            logger.warning("parked records stay", extra={"topic": topic, "error": error.detail})


def _channel(topic: str) -> str:
    channel = topics.channel_of(topic)
    if channel is None:
        raise ValueError(f"nothing is known to do with topic {topic!r}")
    return channel


def _deadline_s() -> float:
    return time.monotonic() + BATCH_DEADLINE_S
