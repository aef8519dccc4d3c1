"""The whole system with real dialogues: `make demo`, or `python -m demo --help`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import httpx
from rich.console import Console

from demo import channels, evidence, interrupts, scenes
from demo.clients import Refused, Simulator, User
from demo.journal import Journal
from demo.people import JOHN, MARIA, Login, logins_file, sign_in_all
from demo.private import read_private
from demo.reckoning import reckon
from demo.scenes import Stage
from demo.summary import Summary, summarize
from demo.supervisor import START_FAILURES, LocalSystem, demo_system, print_addresses, profile
from demo.view import View, view_for

DEFAULT_LIMIT_S: Final = 30.0
AGENTS: Final = {"whatsapp": 0, "instagram": 1}  # whose the channels are, by place among the logins
CATCH_UP_S: Final = 10.0

EPILOG: Final = """
environment: DEMO=once, DEMO_LIMIT_S and DEMO_SWITCHES stand for the options; PROFILE is local (the default) or cluster,
which runs on the servers that the TEST_*_URL variables of `make stack` name; STATE_DIR is the folder of all state;
API_PORT, GATEWAY_PORT and the other variables in docs/configuration.md move the ports.

exit code: 0 when every message arrived everywhere in time, once; 1 when not, or when the system did not start; 2 when
an option is wrong. Watch it fail: python -m demo --once --limit-s 5 --switches '{"outage": true}'
"""


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    view = view_for(Console())
    try:
        with interrupts.interruptible():
            view.step(f"Starting the {profile()} profile …")
            logins: list[Login] = []
            with demo_system(before_work=lambda system: logins.extend(_move_in(system, view))) as system:
                view.step("Playing dialogues in five languages, with Maria on WhatsApp and John on Instagram …")
                summary = interrupts.run(_play(system, logins, options, view))
                view.summary(summary, limit_s=options.limit_s)
                if not options.once:
                    _stay(system)
    except KeyboardInterrupt:
        return 130 if options.once else 0
    except (*START_FAILURES, Refused, httpx.HTTPError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if summary.flawless else 1


def _move_in(system: LocalSystem, view: View) -> list[Login]:
    """Alice and Bob are the agents before anybody looks at what an earlier run left: what Maria wrote then shall not
    open her conversation with the operator."""
    view.step("Signing in Alice and Bob, giving them the WhatsApp and the Instagram account …")
    logins = sign_in_all(system.api_url, system.state_dir)
    agents = {channel: logins[place].username for channel, place in AGENTS.items()}
    system.run_commands(channels.set_up(system.state_dir, simulator_url=system.simulator_url, agents=agents))
    return logins


async def _play(system: LocalSystem, logins: list[Login], options: argparse.Namespace, view: View) -> Summary:
    journal = Journal()
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Simulator(system.simulator_url))
        users = [await stack.enter_async_context(_user(login, system, journal, options.limit_s)) for login in logins]
        alice, bob = users
        stage = Stage(alice, bob, simulator=simulator, journal=journal, limit_s=options.limit_s)
        await _caught_up(system)
        before = await evidence.look_before(users, simulator)
        await simulator.turn(options.switches)
        names = {MARIA.party: MARIA.name, JOHN.party: JOHN.name, **{user.user_id: user.name for user in users}}
        with view.playing(journal, names):
            broken_off = await scenes.play(stage)
            await scenes.settled(stage)
        found = await evidence.collect(users, simulator, before)
        return summarize(found, reckon(found, limit_s=options.limit_s), users, journal, broken_off)


def _user(login: Login, system: LocalSystem, journal: Journal, patience_s: float) -> User:
    return User(
        name=login.name,
        user_id=login.user_id,
        token=login.token,
        api_url=system.api_url,
        gateway_url=system.gateway_url,
        journal=journal,
        patience_s=patience_s,
    )


async def _caught_up(system: LocalSystem) -> None:
    """Let what an earlier run left on the log come to its end first; what cannot is parked, and no reason to wait."""
    metrics_url = system.ready_url("bridge").replace("/ready", "/metrics")
    async with httpx.AsyncClient(trust_env=False) as http:
        with suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S):
                while _lag((await http.get(metrics_url)).text):
                    await asyncio.sleep(0.1)


def _lag(metrics: str) -> float:
    """Records that the bridge has not finished."""
    lines = (line for line in metrics.splitlines() if line.startswith("chat4all_consumer_lag_records{"))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _stay(system: LocalSystem) -> None:
    print("\nEverything stays up:")
    path = logins_file(system.state_dir)
    kept = read_private(path)["users"].values()
    if sys.stdout.isatty():
        people = " · ".join(f"{login['username']} {login['password']}" for login in kept)
    else:
        people = f"{', '.join(login['username'] for login in kept)}: {path}"
    print(f"  sign in    {people}")
    print_addresses(system)
    threading.Event().wait()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Start the whole system, play real dialogues through it, count what arrived, and stay up.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="end after the summary instead of staying up")
    parser.add_argument(
        "--limit-s",
        type=float,
        default=environment.get("DEMO_LIMIT_S") or DEFAULT_LIMIT_S,
        help=f"a message that is not READ by then is late, its scene is broken off (default {DEFAULT_LIMIT_S:g})",
    )
    parser.add_argument(
        "--switches",
        type=_switches,
        default=environment.get("DEMO_SWITCHES") or "{}",
        metavar="JSON",
        help="turn the simulator's switches (docs/simulator.md) before the dialogues begin",
    )
    options = parser.parse_args(arguments)
    if environment.get("DEMO", "") not in ("", "once"):
        parser.error("DEMO may be empty or `once`")
    try:
        profile()
    except ValueError as error:
        parser.error(str(error))
    if not options.limit_s > 0:
        parser.error("--limit-s must be above 0")
    options.once = options.once or environment.get("DEMO") == "once"
    return options


def _switches(text: str) -> dict[str, Any]:
    try:
        switches = json.loads(text)
    except ValueError:
        switches = None
    if not isinstance(switches, dict):
        raise argparse.ArgumentTypeError("a JSON object is expected")
    return switches


if __name__ == "__main__":
    sys.exit(main())
