"""Calling the webhook: signed, batched, in order per contact, again and again until it answers 200."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import httpx
import msgspec

from simulator import instagram, whatsapp
from simulator.accounts import Account, Subscription
from simulator.graph import encode_webhook
from simulator.logs import log
from simulator.switches import Dice, Switches

LANES_PER_ACCOUNT: Final = 4
VERIFY_PATIENCE_S: Final = 120.0


class Item(msgspec.Struct, kw_only=True):
    """One piece of news for the webhook. ``delivered`` is called once, when it was first answered with 200."""

    contact: str
    kind: str
    payload: dict[str, Any]
    name: str = ""
    delivered: Callable[[], None] | None = None


class Delivery(msgspec.Struct, kw_only=True):
    """Counters: items are pieces of news, posts are HTTP requests."""

    items_delivered: int = 0
    items_duplicated: int = 0
    items_reordered: int = 0  # pairs of which the later one was told first
    items_early: int = 0  # delivered before the send call was answered
    items_given_up: int = 0
    posts_delivered: int = 0
    posts_failed: int = 0
    largest_batch: int = 0


class Webhooks:
    """Sends items to each account's webhook. Contacts are spread over lanes; a lane has one POST under way."""

    def __init__(self, *, client: httpx.AsyncClient, switches: Callable[[str], Switches], dice: Dice) -> None:
        self._client = client
        self._switches = switches
        self.dice = dice
        self.delivery = Delivery()
        self._lanes: dict[tuple[Account, int], Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, account: Account, item: Item) -> None:
        key = (account, zlib.crc32(item.contact.encode()) % LANES_PER_ACCOUNT)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(account)
        lane.items.append(item)
        if not lane.busy:
            lane.busy = True
            task = asyncio.create_task(self._work(lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def pending(self) -> int:
        """Items that wait or are under way."""
        return sum(len(lane.items) for lane in self._lanes.values())

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything is delivered, or the time is over."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)

    async def clear(self) -> None:
        """Forget everything that is not delivered, and all counters."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lanes.clear()
        self.delivery = Delivery()

    async def _work(self, lane: Lane) -> None:
        """Until the lane is empty. Its items stay in it until they are answered, so that they count as pending."""
        try:
            while lane.items:
                switches = self._switches(lane.account.account_id)
                if switches.webhook_linger_ms and len(lane.items) < switches.webhook_max_batch:
                    await asyncio.sleep(switches.webhook_linger_ms / 1000)
                size = min(len(lane.items), switches.webhook_max_batch)
                batch = [lane.items[index] for index in range(size)]
                delivered = await self._deliver(lane.account, batch)
                for _ in batch:
                    lane.items.popleft()
                self._settle(batch, delivered=delivered)
        finally:
            lane.busy = False

    def _settle(self, batch: list[Item], *, delivered: bool) -> None:
        if not delivered:
            self.delivery.items_given_up += len(batch)
            return
        self.delivery.items_delivered += len(batch)
        self.delivery.largest_batch = max(self.delivery.largest_batch, len(batch))
        for item in batch:
            if item.delivered is not None:
                item.delivered()

    async def _deliver(self, account: Account, batch: list[Item]) -> bool:
        """Post until answered 200. False when all attempts are used up: the batch is given up."""
        body = render(account, batch)
        headers = {"Content-Type": "application/json", "X-Hub-Signature-256": sign(account.app_secret, body)}
        attempt = 0
        while True:
            attempt += 1
            problem = await self._post(account, body, headers)
            if problem is None:
                if attempt > 1:
                    log("webhook_recovered", account_id=account.account_id, attempts=attempt, items=len(batch))
                return True
            switches = self._switches(account.account_id)
            if attempt == 1:
                log("webhook_failed", account_id=account.account_id, problem=problem, items=len(batch))
            if attempt >= switches.redeliver_attempts:
                log("webhook_given_up", account_id=account.account_id, attempts=attempt, items=len(batch))
                return False
            await asyncio.sleep(self._backoff_s(switches, attempt))

    async def _post(self, account: Account, body: bytes, headers: dict[str, str]) -> str | None:
        """None when answered 200, else what went wrong."""
        timeout_s = self._switches(account.account_id).webhook_timeout_ms / 1000
        try:
            response = await self._client.post(account.webhook_url, content=body, headers=headers, timeout=timeout_s)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = type(error).__name__
        else:
            if response.status_code == httpx.codes.OK:
                self.delivery.posts_delivered += 1
                return None
            problem = f"HTTP {response.status_code}"
        self.delivery.posts_failed += 1
        return problem

    def _backoff_s(self, switches: Switches, attempt: int) -> float:
        full_ms = min(switches.redeliver_base_ms * 2.0 ** min(attempt - 1, 30), switches.redeliver_max_ms)
        return self.dice.between("backoff", 0.5, 1.0) * full_ms / 1000

    async def verify(self, account: Account, subscription: Subscription) -> None:
        """Ask the webhook once whether it wants us, as Meta does when a subscription is set up."""
        challenge = str(secrets.randbelow(9 * 10**9) + 10**9)
        query = {"hub.mode": "subscribe", "hub.challenge": challenge, "hub.verify_token": account.verify_token}
        subscription.attempts += 1
        try:
            response = await self._client.get(account.webhook_url, params=query, timeout=10)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            subscription.state, subscription.http_status = "unreachable", None
            subscription.detail = type(error).__name__
        else:
            verified = response.status_code == httpx.codes.OK and response.text == challenge
            subscription.state = "verified" if verified else "refused"
            subscription.http_status = response.status_code
            subscription.detail = "" if verified else "the answer is not 200 with the challenge as plain text"
        log("subscription", account_id=account.account_id, state=subscription.state, status=subscription.http_status)

    async def verify_patiently(self, account: Account, subscription: Subscription) -> None:
        """At the start the webhook's owner may still be starting: ask again, up to two minutes."""
        loop = asyncio.get_running_loop()
        deadline, pause_s = loop.time() + VERIFY_PATIENCE_S, 0.25
        while loop.time() < deadline:
            await self.verify(account, subscription)
            if subscription.state == "verified":
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)


class Lane:
    """What waits for one account and one share of its contacts."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.items: deque[Item] = deque()
        self.busy = False


def sign(app_secret: str, body: bytes) -> str:
    return "sha256=" + hmac.new(app_secret.encode(), body, hashlib.sha256).hexdigest()


def render(account: Account, batch: list[Item]) -> bytes:
    items = [(item.kind, item.payload, item.name) for item in batch]
    shape = whatsapp.webhook if account.channel == "whatsapp" else instagram.webhook
    return encode_webhook(shape(account, items))
