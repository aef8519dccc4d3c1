"""The Celery app: an executor of batches on Redis. Nothing is retried, acknowledged late or answered here."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final

from celery import Celery, bootsteps
from celery.signals import setup_logging, task_postrun, task_prerun, worker_init, worker_process_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat4all_project.settings")
# They import every address of the API, whose packages a worker does without; `manage.py check` runs them.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")

logger = logging.getLogger(__name__)

DEAD_FOUND_S: Final = 0.5

app = Celery("chat4all")
app.conf.update(
    # JSON only: a broker that somebody else can write to must not run pickled code.
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,  # what waits, waits in Redis, where any free worker takes it
    worker_lost_wait=1.0,  # a child's death is told before its batch's lease (3 s) lapses
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    task_default_queue="core",
    task_create_missing_queues=True,
    CELERY_DB_REUSE_MAX=sys.maxsize,  # see `_tidy_connections`
    broker_connection_timeout=2,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "global_keyprefix": "",
        # What a worker took is lost with it, and dispatched again. Kept in Redis until it is acknowledged, a task whose
        # acknowledgement fails counts as held for ever: a worker that may hold one never asks for another.
        "ack_emulation": False,
    },
)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["messaging"])


@setup_logging.connect
def _log_as_configured(**_: Any) -> None:
    """Django configures logging; Celery leaves it alone, and two lines for each task would cost more than the task."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Health(bootsteps.StartStopStep):
    """The parent answers /health, /ready and /metrics for its children on HEALTH_PORT: before there is a broker, and
    after its children were forked. What checks open has threads, of librdkafka and of Cassandra's driver, and where one
    is in `getaddrinfo` at a fork the child waits for ever in its own: with glibc 2.36 one child of 130 to 400 whose
    parent does nothing else (see https://github.com/DataDog/datadogpy/pull/848). One that is forked later is ended
    at its batch's time limit, should it ever meet that.
    """

    name = "health"
    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        from connectors import registry  # noqa: PLC0415 - Django is set up by now
        from core.health import serve_health  # noqa: PLC0415
        from messaging import metrics, sampling, wiring  # noqa: PLC0415

        if port := os.environ.get("HEALTH_PORT"):
            topics = sampling.of_queues(parent.app.amqp.queues.consume_from)
            metrics.start_at_zero(topics, (metrics.USERS, *registry.channels()))
            sampling.watch_lag(topics)
            try:
                serve_health(int(port), wiring.checks(), optional=wiring.OPTIONAL)
            except OSError:  # a child of a parent that was killed may hold it until it ends
                logger.exception("nobody hears how this worker is")


class Children(bootsteps.StartStopStep):
    """Celery hears of a child's death by a pipe, which the kernel closes a moment before it has the child's end to
    tell. Asked in between the pool finds nobody dead, and asks again when another one dies, or after 5 s: until then
    the child's task counts as at work, and a worker whose children are all at work takes nothing.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        parent.hub.call_repeatedly(DEAD_FOUND_S, parent.pool.maintain_pool)


app.steps["worker"].add(Health)
app.steps["worker"].add(Children)


@task_prerun.connect
@task_postrun.connect
def _tidy_connections(**_: Any) -> None:
    """Around a task what Django does around a request: connections that broke or are too old are closed.

    Celery would close all of them, and their pools, twice for each task: a batch would begin by opening a database.
    """
    from django.db import close_old_connections  # noqa: PLC0415 - Django is set up by now

    close_old_connections()


@worker_init.connect
def _begin_last(**_: Any) -> None:
    """A child begins as Celery's own part for Django does, which then closes all pools of connections: behind that."""
    worker_process_init.connect(_fresh_connections)


def _fresh_connections(**_: Any) -> None:
    """A child starts with connections of its own, and knows the channel accounts from then on."""
    from django.db import connections  # noqa: PLC0415

    from messaging import channels, sampling, wiring  # noqa: PLC0415

    connections.close_all()
    wiring.event_log().warm()
    sampling.every(channels.LEARNED_EVERY_S, channels.learn, at_once=True)
    sampling.every(1.0, wiring.notifier().settle)
