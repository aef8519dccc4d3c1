"""The whole loop: POST, log, worker, WhatsApp (simulated), its signed webhooks, and the sender's frame that says READ.

python -m bench.loop
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from bench.figures import Figure, Spread
from bench.live import cpu_figure, kept, shared
from bench.people import WHATSAPP_SECRETS, Talk, User, external_talks, set_up_whatsapp, users
from bench.traffic import LATE_S, Lag, Traffic, read
from bench.usage import Usage
from demo.supervisor import LocalSystem

SENDERS: Final = 20
PEOPLE: Final = 200
WINDOW: Final = 200
WHAT: Final = f"whole loop, {WINDOW} under way"


def people_on_whatsapp(system: LocalSystem) -> tuple[list[User], list[Talk]]:
    set_up_whatsapp(system)
    senders = users(system.api_url, SENDERS, prefix="loop")
    return senders, external_talks(system.api_url, senders, PEOPLE, prefix="loop")


def most(system: LocalSystem, senders: Sequence[User], talks: Sequence[Talk], *, seconds: float) -> list[Figure]:
    """The next message goes out when the platform's READ of an earlier one reached its sender."""
    before = _sends(system)
    traffic, lag, usage = Traffic(system, senders, read), Lag(system), Usage(system)
    per_s = traffic.closed_window(talks, window=WINDOW, seconds=seconds)
    seen = traffic.watched
    cpu = cpu_figure(WHAT, usage, len(seen.due_s))
    beside = f"0.4 s of it are the simulator's own; {shared(usage)}"
    traffic.close()
    lag.wait_for_none(LATE_S)
    lag.close()
    after = _sends(system)
    sent, doubled = (after[name] - before[name] for name in ("accepted", "duplicates"))
    return [
        Figure(f"{WHAT}: POST to READ", f"{per_s:,.0f}/s, {Spread.of(seen.latencies_s())}", beside),
        kept(WHAT, system, seen),
        Figure(f"{WHAT}: at the platform", f"{sent} messages, {doubled} twice", f"{len(seen.due_s)} accepted"),
        cpu,
    ]


def _sends(system: LocalSystem) -> dict[str, Any]:
    """The simulator's count, once nothing of it is under way any more."""
    deadline_s = time.perf_counter() + LATE_S
    while True:
        stats = httpx.get(f"{system.simulator_url}/_control/stats", timeout=30).raise_for_status().json()
        if not stats["webhooks"]["pending"] or time.perf_counter() > deadline_s:
            return dict(stats["sends"])
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="chat4all-bench-") as name,
        LocalSystem(Path(name), env=WHATSAPP_SECRETS) as system,
    ):
        senders, talks = people_on_whatsapp(system)
        most(system, senders, talks, seconds=3)
        for figure in most(system, senders, talks, seconds=options.seconds):
            print(figure)


if __name__ == "__main__":
    main()
