"""Who looks on while something breaks: a client that asks all the time, and what processes say of themselves."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx

from demo.supervisor import LocalSystem
from tests.faults.collect import CHANNELS
from tests.faults.history import Request
from tests.faults.patience import COMES_S, eventually
from tests.faults.world import World
from tests.town import phone

# An append may take 5 s, a look-up in the store before it as long; the rest is for a machine on which a server starts
# anew meanwhile. Who hangs, hangs for the client's own time-out.
LONGEST_ANSWER_S: Final = 25.0
GIVES_UP_S: Final = 40.0
NO_ANSWER: Final = 0
EVERYBODY: Final = ("user", *CHANNELS, *(f"from {each}" for each in CHANNELS))  # who writes all the time
KIND: Final = "asked"


@dataclass
class Impatient:
    """Alice in a conversation with bob: says something again and again, and notes each answer and how long it took."""

    world: World
    conversation: str
    answers: list[tuple[int, float]] = field(default_factory=list)  # status, NO_ANSWER for none; seconds
    accepted: list[str] = field(default_factory=list)  # texts

    def hears(self, status: int, *, within_s: float = COMES_S) -> None:
        """From now on, at least once."""
        before = len(self.answers)
        eventually(lambda: any(heard == status for heard, _ in self.answers[before:]), within_s=within_s)

    @property
    def heard(self) -> set[int]:
        return {status for status, _ in self.answers}

    def _ask(self, enough: threading.Event) -> None:
        api = self.world.alice.api
        # No connection is kept: one that the server closes for its age would look like an answer that never came.
        alone = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=api.base_url, headers=api.headers, timeout=GIVES_UP_S, limits=alone) as http:
            while not enough.wait(0.2):
                text = f"{self.conversation}: now? {len(self.answers)}"
                started_s = time.monotonic()
                status = say(self.world, http, self.conversation, text)
                if status == httpx.codes.ACCEPTED:
                    self.accepted.append(text)
                self.answers.append((status, time.monotonic() - started_s))


def say(world: World, http: httpx.Client, conversation: str, text: str, **headers: str) -> int:
    """The status that alice hears for a message to bob, NO_ANSWER for none. Whatever it is, the message is judged."""
    alice, bob = world.alice.user_id, world.bob.user_id
    body = {"conversation_id": conversation, "recipient_id": bob, "content": text}
    began_s = time.monotonic()
    try:
        answer = http.post("/v1/messages", json=body, headers=headers)
    except httpx.TransportError:
        status, message_id = NO_ANSWER, None
    else:
        status = answer.status_code
        message_id = answer.json()["message_id"] if status == httpx.codes.ACCEPTED else None
    request = Request(conversation, alice, text, message_id, undecided=message_id is None)
    world.load.note(request, began_s=began_s, kind=KIND)
    return status


@contextmanager
def asking(world: World) -> Iterator[Impatient]:
    """Inside, such a client asks. Afterwards: each answer was 202 or 503, none was missing or long in coming."""
    client, enough = Impatient(world, f"now-{phone()}"), threading.Event()
    thread = threading.Thread(target=client._ask, args=(enough,), daemon=True)
    thread.start()
    try:
        client.hears(202)  # the conversation is there
        yield client
    finally:
        enough.set()
        thread.join(GIVES_UP_S + 5)
    assert not thread.is_alive(), "a client hangs"
    assert client.heard <= {202, 503}, client.heard
    assert max(seconds for _, seconds in client.answers) < LONGEST_ANSWER_S


def all_arrive(world: World, texts: frozenset[str], *, within_s: float = 90) -> None:
    def missing() -> frozenset[str]:
        return texts - world.load.arrivals().keys()

    try:
        eventually(lambda: not missing(), within_s=within_s, every_s=0.5)
    except AssertionError:
        raise AssertionError(f"not there within {within_s:g} s: {sorted(missing())[:5]}") from None


def metric(system: LocalSystem, process: str, name: str, **labels: str) -> float:
    """The sum of a process' samples of that name with these labels; 0 when it is down."""
    try:
        shown = httpx.get(system.ready_url(process).replace("/ready", "/metrics"), timeout=5).text
    except httpx.TransportError:
        return 0.0
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    samples = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", shown, re.MULTILINE)
    return sum(float(value) for found, value in samples if all(each in found for each in wanted))


@dataclass(frozen=True, slots=True)
class Log:
    """What a process prints from now on."""

    path: str
    start: int

    @classmethod
    def of(cls, system: LocalSystem, process: str) -> Log:
        path = system.state_dir / "logs" / f"{process}.log"
        return cls(str(path), path.stat().st_size)

    def says(self, *any_of: str) -> bool:
        with open(self.path, "rb") as printed:
            printed.seek(self.start)
            text = printed.read().decode(errors="replace")
        return any(each in text for each in any_of)
