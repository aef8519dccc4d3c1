"""PostgreSQL is down: who and what was known a moment ago goes on, both ways, and nothing is lost meanwhile."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psycopg
import pytest

from accounts.directory import MAX_AGE_S
from demo.supervisor import LocalSystem
from tests.stack.postgres import Postgres
from tests.stack.scratch import scratch_directory
from tests.stack.servers import needed
from tests.town import PASSWORD, Resident, Town, eventually, insta_id, phone

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(400)]

ONE_OF_EACH = {"API_WORKERS": "1", "WORKER_PROCESSES": "1"}  # for what is known is known to a process
PEOPLE = 4


@dataclass(frozen=True)
class Street:
    town: Town
    postgres: Postgres
    alice: Resident
    bob: Resident
    account: str

    def new_conversation(self) -> int:
        """A first message to Bob, on a connection of its own; the answer's status."""
        body = {"conversation_id": secrets.token_hex(8), "recipient_id": self.bob.user_id, "content": "hi"}
        return httpx.post(
            f"{self.alice.api.base_url}/v1/messages", json=body, headers=self.alice.api.headers, timeout=30
        ).status_code

    def exchange(self, text: str, people: list[str]) -> None:
        """Alice writes to everybody, everybody answers, and all of it arrives."""
        with ThreadPoolExecutor(4) as hands:
            list(hands.map(lambda to: self.alice.post(f"chat-{to}", text, f"whatsapp:+{to}"), people))
            eventually(lambda: all(text in self.town.texts(to) for to in people), within_s=60)
            list(hands.map(lambda who: self.town.says("whatsapp", self.account, who, f"{text} back"), people))
        eventually(lambda: all(f"{text} back" in self.alice.sees(f"chat-{who}") for who in people), within_s=60)

    def begins_anew(self, worker: str) -> None:
        """Returns once its child knows the channel accounts: by what its connection asked last, says PostgreSQL."""
        asked = """SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND backend_start > %s
            AND query LIKE '%%messaging_channelaccount_agents%%'"""
        with psycopg.connect(self.postgres.url, autocommit=True) as looking:
            [began] = looking.execute("SELECT clock_timestamp()").fetchone() or [None]
            self.town.system.restart(worker)
            eventually(lambda: looking.execute(asked, [f"chat4all {worker}", began]).fetchone() != (0,), within_s=60)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    needed("postgres")
    with scratch_directory() as folder:
        postgres = Postgres(folder / "postgres")
        try:
            postgres.start()
            env = {"DATABASE_URL": postgres.url, **ONE_OF_EACH}
            with LocalSystem(tmp_path_factory.mktemp("street"), env=env) as system, Town(system) as town:
                alice = town.resident("alice")
                yield Street(town, postgres, alice, town.resident("bob"), town.account("whatsapp", alice))
        finally:
            postgres.close()


def test_known_people_and_accounts_go_on_without_the_accounts_database(street: Street) -> None:
    alice, people = street.alice, [phone() for _ in range(PEOPLE)]
    assert street.new_conversation() == 202
    with alice.socket() as before:
        street.exchange("before", people)
        eventually(lambda: before.frames)
    stranger = street.town.resident("carla")
    soon, late = insta_id(), insta_id()
    street.town.account("instagram", alice)
    alice.post("late", "before", f"instagram:{soon}")
    eventually(lambda: "before" in street.town.texts(soon), within_s=60)
    street.begins_anew("worker-instagram")
    street.postgres.kill()
    try:
        down_s = time.monotonic()
        answers = []
        while time.monotonic() < down_s + 2 * MAX_AGE_S:  # longer than anything is kept while all is well
            answers += [street.new_conversation(), alice.api.get("/v1/conversations").status_code]
        assert set(answers) <= {200, 202}
        with alice.socket() as during:
            street.exchange("during", people)
            eventually(lambda: during.frames)
        alice.post("later", "during", f"instagram:{late}")  # nobody has sent anything since that worker began
        eventually(lambda: "during" in street.town.texts(late), within_s=60)
        signing_in = {"username": stranger.username, "password": PASSWORD, "workspace": "default"}
        assert alice.api.post("/auth/token", json=signing_in, timeout=30).status_code == 503
    finally:
        street.postgres.start()
    eventually(lambda: alice.api.post("/auth/token", json=signing_in, timeout=30).status_code == 200, within_s=40)
    street.exchange("after", people)
    assert street.town.dead_letters() == 0
