"""The simulated platform: takes what we send, lets time pass, and tells our webhook what became of it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final, Literal

import httpx
import msgspec

from simulator import instagram, whatsapp
from simulator.accounts import Account, Accounts, Channel
from simulator.agenda import Agenda
from simulator.graph import Draft, GraphError, ReadReceipt, invalid, new_mid, new_wamid, throttled, unavailable
from simulator.ledger import Ledger, Received, Said
from simulator.logs import log
from simulator.media import (
    INSTAGRAM_KINDS,
    INSTAGRAM_MAX_BYTES,
    KINDS,
    MAX_BYTES,
    MediaFile,
    Shelf,
    bare_type,
    fault,
)
from simulator.people import Buckets, People
from simulator.switches import Dice, Switches
from simulator.webhooks import Item, Webhooks

EARLY_STATUS_PATIENCE_S: Final = 5.0
HUMAN_AGENT_WINDOW_S: Final = 7 * 86_400.0
STATUS_RANK: Final = {"accepted": 0, "sent": 1, "failed": 2, "delivered": 3, "read": 4}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds the memory."""

    max_messages: int = 200_000  # each way; counters go on
    max_pending: int = 500_000  # webhook items scheduled or queued; beyond it sends are refused with 503
    max_media_bytes: int = 512 * 1024 * 1024


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A send that the platform took. ``how`` says whether the caller gets to know."""

    answer: dict[str, Any]
    how: Literal["answer", "close", "hang", "garbage"] = "answer"


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """A file as a person attaches it."""

    filename: str
    content_type: str
    data: bytes


class Utterance(msgspec.Struct, frozen=True, kw_only=True):
    """What a person says to an account.

    ``username`` is for Instagram; ``raw`` is a platform's own object, for kinds that have no field here.
    """

    contact: str
    name: str = ""
    username: str = ""
    text: str = ""
    attached: Attached | None = None
    reply_to: str | None = None
    raw: dict[str, Any] | None = None
    scripted: bool = False


class Platform:
    """One per process. Everything happens on one event loop."""

    def __init__(
        self, *, accounts: Accounts, switches: Switches, client: httpx.AsyncClient, public_url: str, limits: Limits
    ) -> None:
        self.accounts = accounts
        self.switches = self._initial_switches = switches
        self._own: dict[str, dict[str, Any]] = {}  # what accounts have otherwise, by their ids
        self._switches_of: dict[str, Switches] = {}
        self._client = client
        self._public_url = public_url
        self._limits = limits
        self._dice = Dice(switches.seed)
        self._agenda = Agenda()
        self.webhooks = Webhooks(client=client, switches=self.switches_of, dice=self._dice)
        self._background: set[asyncio.Task[None]] = set()
        self._verifying: set[asyncio.Task[None]] = set()
        self.closing = asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        self.ledger = Ledger(self._limits.max_messages)
        self.shelf = Shelf(self._limits.max_media_bytes)
        self.people = People()
        self._rates = Buckets()
        self._pairs = Buckets()

    async def reset(self, *, keep_switches: bool) -> None:
        """As after a start: no messages, no counters, nothing pending. The accounts stay."""
        await self._stop_everything()
        self._forget()
        if not keep_switches:
            self._own.clear()
        self.turn(self.switches if keep_switches else self._initial_switches, reseed=True)

    def turn(self, switches: Switches, *, reseed: bool) -> None:
        """Behave like this from now on; ``reseed`` starts every stream of chances anew."""
        if reseed:
            self._dice = self.webhooks.dice = Dice(switches.seed)
        self.switches = switches
        self._switches_of = {account_id: switches.changed(patch) for account_id, patch in self._own.items()}

    def turn_own(self, account_id: str, patch: dict[str, Any]) -> None:
        """Have one account behave otherwise than the others. Raises msgspec.ValidationError."""
        own = self._own.get(account_id, {})
        if isinstance(delays := patch.get("status_delay_ms"), dict):
            patch = patch | {"status_delay_ms": own.get("status_delay_ms", {}) | delays}
        self._switches_of[account_id] = self.switches.changed(own | patch)
        self._own[account_id] = own | patch

    def forget_own(self, account_id: str) -> None:
        """It behaves like the others again."""
        self._own.pop(account_id, None)
        self._switches_of.pop(account_id, None)

    def switches_of(self, account_id: str) -> Switches:
        return self._switches_of.get(account_id, self.switches)

    @property
    def scheduled(self) -> int:
        """Pieces of news whose time has not come."""
        return len(self._agenda)

    async def close(self, *, grace_s: float) -> None:
        """Let queued webhooks out for a moment, then drop the rest: how many is logged."""
        self.closing.set()
        await self.webhooks.drain(grace_s)
        for task in set(self._verifying):
            task.cancel()
        await asyncio.gather(*self._verifying, return_exceptions=True)
        log("stopped", dropped_items=self.webhooks.pending + self.scheduled, **_flat(self.ledger))
        await self._stop_everything()

    async def _stop_everything(self) -> None:
        self._agenda.clear()
        for task in set(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.webhooks.clear()
        self._agenda.clear()

    @property
    def busy(self) -> int:
        """Links that are being fetched: news about their messages is still to come."""
        return len(self._background)

    def verify_all(self) -> None:
        for account in self.accounts.all():
            self.verify_soon(account.account_id)

    def verify_soon(self, account_id: str) -> None:
        """Ask the account's webhook whether it wants us, beside everything else."""
        account = self.accounts.get(account_id)
        if account is None or not account.webhook_url:
            return
        subscription = self.accounts.subscriptions[account_id]
        subscription.state = "checking"
        _keep(self._verifying, self.webhooks.verify_patiently(account, subscription))

    # --- from us to people -------------------------------------------------------------------------------------

    async def call(self, account_id: str) -> None:
        """What every Graph call goes through first: an outage, then latency. Raises GraphError."""
        switches = self.switches_of(account_id)
        if switches.outage:
            raise unavailable().later(switches.retry_after_s)
        latency_ms = self._dice.between("latency", 0, switches.latency_jitter_ms) + switches.latency_ms
        if latency_ms:
            await asyncio.sleep(latency_ms / 1000)

    async def send(self, account: Account, draft: Draft) -> Accepted:
        """Take the message and let its life begin. Raises GraphError, and then it was surely not sent."""
        switches = self.switches_of(account.account_id)
        if switches.short_brazilian_ids:
            draft = msgspec.structs.replace(draft, contact=whatsapp.without_ninth_digit(draft.contact))
        self._check_limits(account, draft)
        self._check_person(account, draft)
        self._check_quoted(account, draft)
        message = self._received(account, draft)
        media_problem = self._look_up_media(account, draft, message)
        if account.channel == "instagram" and draft.media_link is not None:  # fetched while the caller waits
            found = await self._fetch_link(draft.media_link, message, max_bytes=INSTAGRAM_MAX_BYTES[draft.type])
            if found is None:
                raise invalid("Failed to fetch the file from the url", subcode=2018008)
            if INSTAGRAM_KINDS.get(found) != draft.type:
                raise invalid("Upload attachment failure.", subcode=2018047)
        self.ledger.accept(message)
        if account.channel == "instagram":
            self._schedule_instagram(account, draft, message)
            answer = instagram.answer(draft, message.id)
        else:
            await self._begin_whatsapp(account, draft, message, media_problem)
            answer = whatsapp.answer(draft, message.id)
        if self._dice.hits("ambiguous", switches.ambiguous_rate):
            self.ledger.unanswered += 1
            return Accepted(answer=answer, how=switches.ambiguous_mode)
        return Accepted(answer=answer)

    def _received(self, account: Account, draft: Draft) -> Received:
        return Received(
            id=new_wamid() if account.channel == "whatsapp" else new_mid(),
            channel=account.channel,
            account_id=account.account_id,
            to=draft.contact,
            type=draft.type,
            text=draft.text,
            content=draft.content,
            filename=draft.filename,
            correlation=draft.correlation,
            reply_to=draft.reply_to,
            received_at=_now_ms(),
        )

    def _check_limits(self, account: Account, draft: Draft) -> None:
        switches = self.switches_of(account.account_id)
        self._check_room()
        if self._dice.hits("failure", switches.failure_rate):
            raise unavailable().later(switches.retry_after_s)
        if self._dice.hits("throttle", switches.throttle_rate):
            raise throttled(switches.throttle_status).later(switches.retry_after_s)
        per_s = switches.messages_per_s
        if per_s and not self._rates.take(account.account_id, per_s=per_s, burst=max(per_s, 1)):
            raise throttled(switches.throttle_status).later(switches.retry_after_s)
        pair = (account.account_id, draft.contact)
        if draft.contact in switches.busy_numbers or (
            switches.pair_limit
            and not self._pairs.take(pair, per_s=1 / switches.pair_period_s, burst=switches.pair_burst)
        ):
            details = "Too many messages sent to the same person in a short time"
            raise GraphError(131056, whatsapp.TITLES[131056], details).later(switches.retry_after_s)

    def _check_room(self) -> None:
        """Nothing is taken whose consequences could not be told: that would look as if the hub had lost them."""
        if self.scheduled + self.webhooks.pending >= self._limits.max_pending:
            raise unavailable()

    def _check_person(self, account: Account, draft: Draft) -> None:
        """People who do not exist, cannot be reached, or have not written lately."""
        switches = self.switches_of(account.account_id)
        on_instagram = account.channel == "instagram"
        if draft.contact in switches.unknown_numbers:
            raise instagram.no_such_person() if on_instagram else _undeliverable()
        if on_instagram and draft.contact in switches.fail_numbers:  # there is no failed event to report it later
            raise instagram.not_available(switches.not_available_code)
        if not switches.window_enforced or draft.ignores_window:
            return
        window_s = HUMAN_AGENT_WINDOW_S if draft.extended_window else switches.window_s
        if not self.people.wrote_within(account.account_id, draft.contact, window_s):
            raise instagram.window_closed() if on_instagram else _window_closed()

    def _check_quoted(self, account: Account, draft: Draft) -> None:
        """Only a message of this very chat can be answered to, whoever of the two wrote it."""
        if draft.reply_to is None:
            return
        account_id, person = self.ledger.chat_of(draft.reply_to) or ("", "")
        same_person = whatsapp.without_ninth_digit(person) == whatsapp.without_ninth_digit(draft.contact)
        if account_id != account.account_id or not same_person:
            raise instagram.no_such_message() if account.channel == "instagram" else _no_such_message()

    def _look_up_media(self, account: Account, draft: Draft, message: Received) -> str | None:
        """Fill in what an uploaded file is; what is wrong with it for this message, if anything."""
        if draft.media_id is None:
            return None
        file = self.shelf.get(draft.media_id)
        if file is None or file.account_id != account.account_id:
            raise invalid(f"Param {draft.type}['id'] is not a valid whatsapp business account media attachment ID")
        message.media_sha256, message.media_size = file.sha256, len(file.data)
        return fault(file, draft.type)

    async def _fetch_link(self, link: str, message: Received, *, max_bytes: int) -> str | None:
        """Fetch what a link points to, as the platform does, and say its type; None means that it could not."""
        data = bytearray()
        try:
            async with self._client.stream("GET", link, timeout=15, follow_redirects=True) as response:
                if response.status_code != httpx.codes.OK:
                    return None
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > max_bytes:
                        return None
                content_type = bare_type(response.headers.get("content-type", ""))
        except (httpx.HTTPError, httpx.InvalidURL):
            return None
        message.media_sha256, message.media_size = hashlib.sha256(data).hexdigest(), len(data)
        return content_type

    async def _begin_whatsapp(self, account: Account, draft: Draft, message: Received, problem: str | None) -> None:
        if draft.media_link is not None:
            _keep(self._background, self._fetch_and_schedule(account, draft, message, draft.media_link))
        elif problem is not None:
            self._schedule_failure(account, draft, message, (131053, problem))
        elif draft.contact in self.switches_of(account.account_id).fail_numbers:
            self._schedule_failure(account, draft, message, (131026, "Message undeliverable"))
        elif self._dice.hits("early", self.switches_of(account.account_id).early_status_rate):
            await self._report_at_once(account, draft, message)
            self._schedule_statuses(account, draft, message, already=("sent",))
        else:
            self._schedule_statuses(account, draft, message)

    async def _fetch_and_schedule(self, account: Account, draft: Draft, message: Received, link: str) -> None:
        if await self._fetch_link(link, message, max_bytes=MAX_BYTES[draft.type]) is None:
            self._schedule_failure(account, draft, message, (131053, "The link could not be fetched"))
        elif draft.contact in self.switches_of(account.account_id).fail_numbers:
            self._schedule_failure(account, draft, message, (131026, "Message undeliverable"))
        else:
            self._schedule_statuses(account, draft, message)

    async def _report_at_once(self, account: Account, draft: Draft, message: Received) -> None:
        """``sent`` is at the webhook before our answer is at the sender."""
        if not account.webhook_url:
            return
        delivered = asyncio.Event()
        self._report(account, draft, message, "sent", delivered=delivered)
        try:
            async with asyncio.timeout(EARLY_STATUS_PATIENCE_S):
                await delivered.wait()
            self.webhooks.delivery.items_early += 1
        except TimeoutError:
            log("early_status_late", account_id=account.account_id)

    def _schedule_statuses(
        self, account: Account, draft: Draft, message: Received, *, already: tuple[str, ...] = ()
    ) -> None:
        switches = self.switches_of(account.account_id)
        delays = switches.status_delay_ms
        due_ms = {"sent": delays.sent, "delivered": max(delays.sent, delays.delivered)}
        if switches.auto_read:
            due_ms["read"] = max(due_ms["delivered"], delays.read)
        plan = [(name, ms) for name, ms in due_ms.items() if name not in already]
        for name, ms in self._perhaps_reordered(plan, switches.reorder_rate):
            self._after(ms, partial(self._report, account, draft, message, name))

    def _perhaps_reordered(self, plan: list[tuple[str, int]], rate: float) -> list[tuple[str, int]]:
        """The last two swapped, both at the later one's time: news comes late, never before it happened."""
        if len(plan) < 2 or not self._dice.hits("reorder", rate):
            return plan
        self.webhooks.delivery.items_reordered += 1
        *others, (early, _), (late, late_ms) = plan
        return [*others, (late, late_ms), (early, late_ms)]

    def _schedule_failure(self, account: Account, draft: Draft, message: Received, error: tuple[int, str]) -> None:
        report = partial(self._report, account, draft, message, "failed", error=error)
        self._after(self.switches_of(account.account_id).status_delay_ms.sent, report)

    def _report(
        self,
        account: Account,
        draft: Draft,
        message: Received,
        status: str,
        *,
        error: tuple[int, str] | None = None,
        delivered: asyncio.Event | None = None,
    ) -> None:
        kind, payload = whatsapp.status_item(status, wamid=message.id, draft=draft, at_s=_now_ms() // 1000, error=error)
        self._reached(message, status)
        done = partial(_told, message, status, delivered)
        self._emit(account, Item(contact=draft.contact, kind=kind, payload=payload, delivered=done))
        if status == "read":
            self._answer_from_script(account, draft.contact)

    def _schedule_instagram(self, account: Account, draft: Draft, message: Received) -> None:
        switches = self.switches_of(account.account_id)
        delays = switches.status_delay_ms
        plan = [("echo", delays.sent)] if switches.echoes else []
        if switches.auto_read:
            plan.append(("read", max(delays.sent, delays.read)))
        for name, ms in self._perhaps_reordered(plan, switches.reorder_rate):
            self._after(ms, partial(self._report_instagram, account, draft, message, name))

    def _report_instagram(self, account: Account, draft: Draft, message: Received, name: str) -> None:
        shape = instagram.echo_item if name == "echo" else instagram.read_item
        payload = shape(account, draft, mid=message.id, at_ms=_now_ms())
        status = "sent" if name == "echo" else "read"
        self._reached(message, status)
        done = partial(_told, message, status, None)
        self._emit(account, Item(contact=draft.contact, kind="messaging", payload=payload, delivered=done))
        if name == "read":
            self._answer_from_script(account, draft.contact)

    def _reached(self, message: Received, status: str) -> None:
        if STATUS_RANK[status] > STATUS_RANK[message.status]:
            message.status = status

    def take_receipt(self, account: Account, receipt: ReadReceipt) -> None:
        """We have read what a person wrote. Raises GraphError when nobody wrote that."""
        said = self.ledger.said_by_id(receipt.message_id)
        if said is None or said.account_id != account.account_id:
            raise invalid("Param message_id is not the id of a message that was received")
        said.read_by_us = True
        self.ledger.read_receipts += 1
        self.ledger.typing_indicators += receipt.typing

    # --- from people to us -------------------------------------------------------------------------------------

    def say(self, account: Account, utterance: Utterance) -> Said:
        """A person writes to us. Raises GraphError 131016 when too much is pending already, unless scripted."""
        if not utterance.scripted:
            self._check_room()
        file = self._attach(account, utterance.attached) if utterance.attached else None
        said = Said(
            id=new_wamid() if account.channel == "whatsapp" else new_mid(),
            channel=account.channel,
            account_id=account.account_id,
            sender=utterance.contact,
            type=_kind_of(account.channel, file, utterance),
            text=utterance.text,
            media_sha256=file.sha256 if file else None,
            sent_at=_now_ms(),
        )
        self.ledger.say(said)
        self.ledger.replies += utterance.scripted
        self.people.wrote(account.account_id, utterance.contact, utterance.name)
        self._emit(account, self._inbound_item(account, said, utterance, file))
        return said

    def _attach(self, account: Account, attached: Attached) -> MediaFile:
        return self.shelf.put(
            account_id=account.account_id,
            content_type=attached.content_type,
            filename=attached.filename,
            data=attached.data,
        )

    def _inbound_item(self, account: Account, said: Said, utterance: Utterance, file: MediaFile | None) -> Item:
        if account.channel == "whatsapp":
            kind, payload = whatsapp.inbound_item(
                wamid=said.id,
                contact=said.sender,
                at_s=said.sent_at // 1000,
                content=_whatsapp_content(said, utterance, file),
                reply_to=utterance.reply_to,
                our_number=account.display_phone_number,
            )
        else:
            message = self._instagram_message(account, said, utterance, file)
            kind = "messaging"
            payload = instagram.inbound_item(
                account, contact=said.sender, username=utterance.username, at_ms=said.sent_at, message=message
            )
        name = self.people.name(account.account_id, said.sender)
        return Item(
            contact=said.sender, kind=kind, payload=payload, name=name, delivered=partial(_mark_delivered, said)
        )

    def _instagram_message(
        self, account: Account, said: Said, utterance: Utterance, file: MediaFile | None
    ) -> dict[str, Any]:
        message: dict[str, Any] = {"mid": said.id, **(utterance.raw or {})}
        if utterance.text:
            message["text"] = utterance.text
        if file is not None:
            ttl_s = self.switches_of(account.account_id).media_url_ttl_s
            path = self.shelf.signed_path(file, ttl_s=ttl_s, public=True)
            message["attachments"] = [{"type": said.type, "payload": {"url": self._public_url + path}}]
        if utterance.reply_to is not None:
            message["reply_to"] = {"mid": utterance.reply_to}
        return message

    def _answer_from_script(self, account: Account, contact: str) -> None:
        text = self.people.next_reply(contact)
        if text is not None:
            name = self.people.name(account.account_id, contact)
            utterance = Utterance(contact=contact, name=name, text=text, scripted=True)
            self._after(self.people.reply_delay_ms, partial(self.say, account, utterance))

    # --- time and the webhook ----------------------------------------------------------------------------------

    def _after(self, delay_ms: float, callback: partial[Any]) -> None:
        self._agenda.at(asyncio.get_running_loop().time() + delay_ms / 1000, callback)

    def _emit(self, account: Account, item: Item) -> None:
        if not account.webhook_url:
            return
        self.webhooks.put(account, item)
        switches = self.switches_of(account.account_id)
        if self._dice.hits("duplicate", switches.duplicate_rate):
            again = msgspec.structs.replace(item, delivered=None)
            delay_ms = self._dice.between("duplicate_delay", 0, switches.duplicate_delay_ms)
            self._after(delay_ms, partial(self._emit_again, account, again))

    def _emit_again(self, account: Account, item: Item) -> None:
        self.webhooks.delivery.items_duplicated += 1
        self.webhooks.put(account, item)


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` beside everything else and hold on to it until it is done."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _kind_of(channel: Channel, file: MediaFile | None, utterance: Utterance) -> str:
    if file is not None:
        kind = KINDS.get(bare_type(file.content_type), "document")
        return kind if channel == "whatsapp" else {"document": "file", "sticker": "image"}.get(kind, kind)
    return str((utterance.raw or {}).get("type", "text"))


def _whatsapp_content(said: Said, utterance: Utterance, file: MediaFile | None) -> dict[str, Any]:
    if utterance.raw is not None:
        return utterance.raw
    if file is None:
        return {"type": "text", "text": {"body": utterance.text}}
    return whatsapp.inbound_media(
        kind=said.type,
        media_id=file.id,
        mime_type=file.content_type,
        sha256=file.sha256,
        filename=file.filename,
        caption=utterance.text,
    )


def _told(message: Received, status: str, delivered: asyncio.Event | None) -> None:
    if STATUS_RANK[status] > STATUS_RANK[message.told]:
        message.told = status
    if delivered is not None:
        delivered.set()


def _mark_delivered(said: Said) -> None:
    said.delivered_at = _now_ms()


def _undeliverable() -> GraphError:
    return GraphError(131026, whatsapp.TITLES[131026], "The recipient is not a WhatsApp user")


def _window_closed() -> GraphError:
    details = "More than 24 hours have passed since the person last replied to this number"
    return GraphError(131047, whatsapp.TITLES[131047], details)


def _no_such_message() -> GraphError:
    return GraphError(131009, whatsapp.TITLES[131009], "Param context['message_id'] is no message of this chat")


def _flat(ledger: Ledger) -> dict[str, int]:
    return {"accepted": ledger.accepted.total(), "refused": ledger.refused.total(), "inbound": ledger.inbound.total()}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
