"""The dialogues as they are played: line by line, each waiting for what it answers."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import httpx

from demo.channels import ACCOUNT_IDS
from demo.clients import Picture, Refused, Simulator, User
from demo.dialogues import Dialogue, dialogue
from demo.journal import Journal, Life
from demo.people import JOHN, MARIA, Outsider
from demo.pictures import sunset

TYPING_S: Final = 0.2
REPLY_DELAY_MS: Final = 300

MADE_BY_ALICE: Final = sunset("praia.png", top=(255, 120, 60), bottom=(90, 30, 110))
MADE_BY_JOHN: Final = sunset("harbour.png", top=(60, 140, 255), bottom=(20, 40, 90))
FOR_BOB: Final = sunset("plano.png", top=(250, 200, 60), bottom=(200, 60, 60))

MARIAS: Final = dialogue("portuguese", "Olá")
JOHNS: Final = dialogue("english", "Hello")
AMONG_USERS: Final = (
    ("demo-pt", "Filmes e máscaras", dialogue("portuguese", "Quem é você?")),
    ("demo-en", "The cake", dialogue("english", "The cake is a lie.", at_most=10)),
    ("demo-es", "Programadores", dialogue("spanish", "¿Eres programador?")),
    ("demo-de", "Guten Morgen", dialogue("german", "Guten Morgen, wie geht es dir?")),
    ("demo-fr", "Bonjour", dialogue("french", "Bonjour, comment vas-tu ?")),
)


class BrokenOff(RuntimeError):
    """A scene could not go on: what it waited for did not come in time."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Everybody, and how long anything may take."""

    alice: User
    bob: User
    simulator: Simulator
    journal: Journal
    limit_s: float

    async def read(self, life: Life) -> None:
        await self._within(lambda: life.is_finished, f"a message in {life.conversation_id} was never read")
        if life.reason:
            raise BrokenOff(f"a message in {life.conversation_id} failed: {life.reason}")

    async def heard(self, person: Outsider, text: str) -> Life:
        """The person's message with this text, once it is here and read."""
        await self._within(
            lambda: self.journal.said_by(person.party, text), f"what {person.name} wrote on {person.channel} never came"
        )
        life = self.journal.said_by(person.party, text)
        assert life is not None  # noqa: S101 - it was just there
        await self.read(life)
        return life

    async def _within(self, holds: Callable[[], object], failure: str) -> None:
        if not await self.journal.until(holds, within_s=self.limit_s):
            raise BrokenOff(f"{failure} within {self.limit_s:g} s")


async def play(stage: Stage) -> list[str]:
    """All scenes at once; why those that did not come to their end did not."""
    await stage.simulator.script(
        {MARIA.address: list(MARIAS.lines[2::2]), JOHN.address: list(JOHNS.lines[2::2])}, delay_ms=REPLY_DELAY_MS
    )
    scenes = (
        *(_told(_among_users(stage, *each)) for each in AMONG_USERS),
        _told(_maria(stage)),
        _told(_john(stage)),
    )
    return [reason for reason in await asyncio.gather(*scenes) if reason]


async def settled(stage: Stage) -> None:
    """Wait, at most the limit, until everything that was begun is finished and the platforms have no more news."""
    await stage.journal.until(
        lambda: all(life.is_finished for life in stage.journal.lives.values()), within_s=stage.limit_s
    )


async def _told(scene: Awaitable[None]) -> str:
    try:
        await scene
    except (BrokenOff, Refused, httpx.HTTPError) as error:
        return str(error) or type(error).__name__
    return ""


async def _among_users(stage: Stage, conversation_id: str, title: str, lines: Dialogue) -> None:
    """Alice begins, Bob answers. The first dialogue ends with a file."""
    await stage.alice.open(conversation_id, title=title, members=[stage.bob.user_id])
    turns = itertools.cycle([(stage.alice, stage.bob), (stage.bob, stage.alice)])
    for line, (speaker, listener) in zip(lines.lines, turns, strict=False):
        await _say(stage, speaker, conversation_id, line, to=listener.user_id)
    if conversation_id == AMONG_USERS[0][0]:
        await _say(stage, stage.alice, conversation_id, "O plano", to=stage.bob.user_id, file=FOR_BOB)


async def _maria(stage: Stage) -> None:
    """She writes on WhatsApp, unknown to everybody; Alice answers, and sends a picture."""
    alice, account = stage.alice, ACCOUNT_IDS["whatsapp"]
    await stage.simulator.write("whatsapp", account, sender=MARIA.address, name=MARIA.name, text=MARIAS.lines[0])
    home = await _converse(stage, alice, MARIA, MARIAS)
    await _say(stage, alice, home, "Uma foto para você", to=MARIA.party, file=MADE_BY_ALICE)


async def _john(stage: Stage) -> None:
    """He writes on Instagram, Bob answers; in the end a picture comes from him."""
    bob, account = stage.bob, ACCOUNT_IDS["instagram"]
    await stage.simulator.write("instagram", account, sender=JOHN.address, name=JOHN.name, text=JOHNS.lines[0])
    await _converse(stage, bob, JOHN, JOHNS)
    media = {"content_type": MADE_BY_JOHN.content_type, "base64": base64.b64encode(MADE_BY_JOHN.data).decode()}
    await stage.simulator.attach(
        "instagram", account, sender=JOHN.address, name=JOHN.name, file=MADE_BY_JOHN.filename, media=media
    )
    await stage.heard(JOHN, "")


async def _converse(stage: Stage, user: User, person: Outsider, lines: Dialogue) -> str:
    """The person's lines come from the simulator, one for each answer that was read; where it took place."""
    home = ""
    for number, line in enumerate(lines.lines):
        if number % 2:
            await _say(stage, user, home, line, to=person.party)
        else:
            home = (await stage.heard(person, line)).conversation_id
    return home


async def _say(
    stage: Stage, speaker: User, conversation_id: str, line: str, *, to: str, file: Picture | None = None
) -> None:
    await asyncio.sleep(TYPING_S)
    await stage.read(await speaker.say(conversation_id, line, to=to, file=file))
