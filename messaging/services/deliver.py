"""Behind `<channel>-outbound`: send each message once, as far as physics allows, in its conversation's order.

Conversations go in parallel, the messages of one conversation one after another: a batch is sent in waves that take at
most one message of each conversation. A claim in the store is taken before a send and settled after it. What can't be
sent for long is parked with all that follows it in its conversation, so that one bad recipient never pins a partition.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Protocol
from uuid import UUID

from connectors.base import Account, Capabilities, Media, Outgoing
from connectors.errors import (
    AmbiguousDeliveryError,
    DeliveryError,
    PausedDeliveryError,
    PermanentDeliveryError,
    TransientDeliveryError,
)
from core.clock import Clock
from core.errors import Unavailable
from core.failpoints import WAITS, failpoint
from files.errors import StorageUnavailable
from messaging import codec, metrics, topics, tracing
from messaging.domain import Contact, ExternalRef, Message, Outbound, Party, Status, StatusChange
from messaging.errors import LeaseLost, LogUnavailable, SecretsUnreadable
from messaging.ports import (
    DeliveryClaim,
    DeliveryKey,
    DeliveryOutcome,
    DeliveryState,
    EventLog,
    MessageStore,
    NewRecord,
    ParkedRecord,
    ParkScope,
    Record,
)
from messaging.services.batches import Item, Lease, Outcomes, decoded
from messaging.work import DONE, EXPIRED, Outcome, Verdict, Work

logger = logging.getLogger(__name__)

# Longer than a task may live: a claim whose lease ran out has no sender any more. A batch that was taken back from its
# worker is not waited for that long: its successor knows by the owner's epoch, see `_supersedes`.
CLAIM_LEASE_MS: Final = 75_000
# Of a send's begin, an upload included; the POST takes at most 18 s then (`http.Limits`). Instagram's two, a file's and
# its text's, take 48 s at most: what goes by a link has no upload before it.
POST_WITHIN_S: Final = 30.0
EVIDENCE_WAIT_MS: Final = int(10_000 * WAITS)  # a status with our correlation field may still tell of its delivery
LOOK_EVERY_MS: Final = 2_000  # of that time: evidence may come at any moment
# The second try of an attempt has a claim of its own, under a number above all attempts (`domain.MAX_ATTEMPT`).
SECOND_TRY: Final = 1000
ARRIVED: Final = (Status.DELIVERED, Status.READ)  # whichever attempt it was
UNKNOWN: Final = "unknown_delivery"
BROKE: Final = "internal_error"
PARK_AFTER_MS: Final = int(30_000 * WAITS)  # of failing in the lane
PARK_PAUSED_AFTER_MS: Final = 300_000  # of an account that is away: it would hold the partition's watermark for ever
PARK_FIRST_MS: Final = int(30_000 * WAITS)
PARK_PAUSED_MS: Final = int(60_000 * WAITS)  # each time, however long: an outage says nothing about the recipient
PARK_LONGEST_MS: Final = 30 * 60_000
PARK_AS_ASKED_MS: Final = 3600_000  # the longest wait that a platform is granted
RESUME_WITHIN_MS: Final = int(20_000 * WAITS)  # of being taken; less than any wait: what was just tried is due later
# What is due later than in this time was tried; what is due sooner may have been taken again.
TRIED_MS: Final = (RESUME_WITHIN_MS + PARK_FIRST_MS) // 2
PAUSED_S: Final = 5.0  # unless something says for how long
MAX_BROKEN: Final = 3  # tries of a message that something of ours breaks on
MAX_AGE_MS: Final = 24 * 3600 * 1000  # WhatsApp's service window: what is older would be refused or a surprise


class Sender(Protocol):
    """The part of a connector that sending needs."""

    capabilities: ClassVar[Capabilities]

    def send(self, account: Account, message: Outgoing) -> str: ...


class Breakers(Protocol):
    """Circuit breakers by channel account."""

    def guard(self, channel: str, account_id: str) -> AbstractContextManager[None]:
        """Around one call to the platform: raises PausedDeliveryError instead while the breaker is open."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Everything that sending on one channel needs."""

    channel: str
    sender: Sender
    account_for: Callable[[Outbound], Account | None]  # see `messaging.parties.account_for`
    is_agent: Callable[[Account, str], bool]  # whether a user answers for that account of ours
    breakers: Breakers
    store: MessageStore
    log: EventLog
    media_for: Callable[[Outbound], Media | None]
    bury: Callable[[Work, str], bool]  # to the dead letters, with the reason; False: not now
    retry_delay_s: Callable[[int], float]
    clock: Clock
    noted: Callable[[Sequence[ExternalRef]], None]  # once it is stored, what the platform calls ours; raises nothing
    parallel: int = 16


@dataclass(frozen=True, slots=True)
class ParkedItem:
    """A parked record in a worker's hands."""

    record: Record
    attempts: int
    first_failed_ms: int

    @property
    def number(self) -> int:
        """Its offset, as what is tried at once is of one partition."""
        return self.record.offset


@dataclass(slots=True)
class _Send:
    """One message of a wave, and how it ended."""

    item: Item
    outbound: Outbound
    account: Account | None
    outgoing: Outgoing
    by_agent: bool  # of ours: the person's answers come to them, whoever has them now
    second: DeliveryState | None = None  # of the second try's claim; CLAIMED: this is it
    posting: bool = False  # from here on it may be delivered by this try
    external_id: str | None = None
    error: DeliveryError | None = None
    bug: str = ""  # the class of what broke on our side

    @property
    def key(self) -> DeliveryKey:
        return DeliveryKey(self.outbound.message.message_id, self.outbound.recipient, self.outbound.attempt)

    @property
    def second_key(self) -> DeliveryKey:
        return replace(self.key, attempt=self.key.attempt + SECOND_TRY)

    @property
    def again(self) -> bool:
        """It may have been delivered before."""
        return self.second is DeliveryState.CLAIMED


Threads = dict[UUID, deque[tuple[Item, Outbound]]]  # by conversation, in order


def deliver(items: Sequence[Item], delivery: Delivery, *, owner: str, lease: Lease, deadline_s: float) -> Outcomes:
    """Send a batch until ``deadline_s`` (monotonic); what was not started by then has no outcome.

    ``owner`` names who sends: ``place@epoch`` where a later epoch supersedes an earlier one of the same place.

    Raises Unavailable and LeaseLost: then everything may be repeated, the claims keep that harmless.
    """
    values, outcomes = decoded(functools.partial(codec.decode, Outbound), items)
    threads = _by_conversation(values)
    outcomes |= _park_behind_parked(threads, delivery)
    with ThreadPoolExecutor(delivery.parallel, thread_name_prefix="send") as pool:
        run = _Run(delivery, owner=owner, lease=lease, pool=pool)
        while threads and delivery.clock.monotonic_s() < deadline_s:
            outcomes |= run.wave(threads)
    return outcomes


def resume_parked(
    scope: ParkScope, delivery: Delivery, *, again_at_ms: int, owner: str, lease: Lease, deadline_s: float
) -> None:
    """Try what is held back of one conversation again, in order; what stays is due later, ever more rarely.

    Whoever handed out this work moved the scope's time to ``again_at_ms``, by a clock that need not be ours; where the
    queue is long it was taken again since, and moved further. One that is due later than that was tried meanwhile, and
    is left alone.
    """
    due_ms = delivery.store.due_at_ms(scope)
    if due_ms is None or due_ms > max(again_at_ms, delivery.clock.now_ms() + TRIED_MS):
        return
    parked = delivery.store.parked(scope, limit=100)
    parked = [each for each in parked if each.source == parked[0].source]  # offsets tell apart within a partition only
    items = {each.offset: _as_item(each, scope) for each in parked}
    values, outcomes = decoded(functools.partial(codec.decode, Outbound), list(items.values()))
    threads = _by_conversation(values)
    with ThreadPoolExecutor(1, thread_name_prefix="send") as pool:
        run = _Run(delivery, owner=owner, lease=lease, pool=pool, parks=False)
        while threads and delivery.clock.monotonic_s() < deadline_s:
            outcomes |= run.wave(threads)
    left = [each for each in parked if not _is_over(items[each.offset], outcomes.get(each.offset), delivery)]
    over = [(each.source, each.offset) for each in parked if each not in left]
    now_ms = delivery.clock.now_ms()
    wait_ms = _wait_ms(left[0], outcomes.get(left[0].offset), now_ms) if left else 0
    delivery.store.unpark(scope, over, next_due_ms=now_ms + wait_ms)
    metrics.RESUMED.labels(delivery.channel).inc(len(over))


def _is_over(item: ParkedItem, outcome: Outcome | None, delivery: Delivery) -> bool:
    """Whether a parked record is done with; what is poison is when its dead letter is written."""
    if outcome is None or outcome.verdict is not Verdict.POISON:
        return outcome == DONE
    return delivery.bury(Work(item.record, item.attempts, first_failed_ms=item.first_failed_ms), outcome.reason)


def _wait_ms(first: ParkedRecord, outcome: Outcome | None, now_ms: int) -> int:
    """How long until the next try, by how the first record that is left ended; at once when time ran out before it."""
    if outcome is None:
        return 0
    asked_ms = _as_asked_ms(outcome)
    match outcome.verdict:
        case Verdict.PAUSED:
            return max(PARK_PAUSED_MS, asked_ms)
        case Verdict.RETRY:
            return max(PARK_FIRST_MS, min((now_ms - first.parked_at_ms) // 2, PARK_LONGEST_MS), asked_ms)
    return PARK_FIRST_MS


def _as_asked_ms(outcome: Outcome) -> int:
    return min(int(outcome.after_s * 1000), PARK_AS_ASKED_MS)


class _Run:
    """The waves of one batch."""

    def __init__(
        self, delivery: Delivery, *, owner: str, lease: Lease, pool: ThreadPoolExecutor, parks: bool = True
    ) -> None:
        self._delivery = delivery
        self._owner = owner
        self._lease = lease
        self._pool = pool
        self._parks = parks

    def wave(self, threads: Threads) -> Outcomes:
        """Send the first message of up to ``parallel`` conversations; removes from ``threads`` what is answered."""
        heads = [thread[0] for thread in list(threads.values())[: self._delivery.parallel]]
        sends, outcomes = self._prepare(heads)
        outcomes |= self._claim(sends)
        ready = [send for send in sends if send.item.number not in outcomes]
        if len(ready) == 1:
            self._send(ready[0])
        else:
            list(self._pool.map(self._send, ready))
        failpoint("deliver.sent")
        self._settle(ready)
        outcomes |= {send.item.number: self._outcome(send) for send in ready}
        return outcomes | self._advance(threads, heads, outcomes)

    def _prepare(self, heads: Sequence[tuple[Item, Outbound]]) -> tuple[list[_Send], Outcomes]:
        """Ask for whatever is to be asked for, before the claim: one that no send follows would look like a lost
        sender. And outcomes for those that cannot be made ready."""
        sends: list[_Send] = []
        outcomes: Outcomes = {}
        for item, outbound in heads:
            try:
                sends.append(self._prepared(item, outbound))
            except SecretsUnreadable as error:  # who has another account goes on
                logger.warning("credentials cannot be read: a send waits", extra={"channel": self._delivery.channel})
                outcomes[item.number] = Outcome(Verdict.PAUSED, after_s=PAUSED_S, reason=error.code)
            except (StorageUnavailable, OSError):  # who has no file goes on
                outcomes[item.number] = Outcome(Verdict.PAUSED, after_s=PAUSED_S, reason="unavailable")
            except Exception as error:
                if self._parks or isinstance(error, Unavailable):
                    raise  # the batch is halved until what breaks it stands alone
                outcomes[item.number] = self._set_apart(item, outbound, error)
        return sends, outcomes

    def _set_apart(self, item: Item, outbound: Outbound, error: Exception) -> Outcome:
        """What is parked stands alone already, and nobody counts how often it breaks: it is poison the first time."""
        with tracing.about(item.record, outbound.message.message_id):
            logger.error("a parked send broke", exc_info=error, extra={"channel": self._delivery.channel})
        return Outcome(Verdict.POISON, reason=type(error).__name__)

    def _prepared(self, item: Item, outbound: Outbound) -> _Send:
        account = self._delivery.account_for(outbound)
        outgoing = _outgoing(outbound, account, self._delivery, retries=self._retries(item))
        by_agent = account is not None and self._delivery.is_agent(account, outbound.message.sender_id)
        return _Send(item, outbound, account, outgoing, by_agent)

    def _retries(self, item: Item) -> int:
        """Of what is parked nobody counts: as many as there may have been since."""
        if self._parks:
            return item.attempts
        return item.attempts + (self._now() - item.first_failed_ms) // PARK_FIRST_MS

    def _claim(self, sends: Sequence[_Send]) -> Outcomes:
        """Outcomes for those that must not be sent now; the others are ours to send."""
        claims = self._claims([send.key for send in sends])
        try:
            return self._heed_all(sends, claims)
        except Exception:
            self._give_back(sends, claims)
            raise

    def _claims(self, keys: Sequence[DeliveryKey]) -> list[DeliveryClaim]:
        return self._delivery.store.claim_deliveries(
            keys,
            owner=self._owner,
            now_ms=self._now(),
            lease_ms=CLAIM_LEASE_MS,
            superseded=functools.partial(_supersedes, self._owner),
        )

    def _heed_all(self, sends: Sequence[_Send], claims: Sequence[DeliveryClaim]) -> Outcomes:
        outcomes: Outcomes = {}
        for send, claim in zip(sends, claims, strict=True):
            if outcome := self._heed(send, claim) or self._refuse(send):
                outcomes[send.item.number] = outcome
            elif send.again:
                # Said before it is done: a worker that dies in between leaves no duplicate without its mark.
                self._report([_news(send, Status.SENT, self._now(), reason="maybe_duplicate")])
        return outcomes

    def _give_back(self, sends: Sequence[_Send], claims: Sequence[DeliveryClaim]) -> None:
        """Nothing was sent: what was not in doubt before is not in doubt now."""
        taken = [(claim.key, claim.state) for claim in claims]
        taken += [(send.second_key, send.second) for send in sends if send.second]
        states = (DeliveryState.CLAIMED, DeliveryState.ABANDONED)
        self._delivery.store.settle_deliveries(
            [
                DeliveryOutcome(key, uncertain=state is DeliveryState.ABANDONED)
                for key, state in taken
                if state in states
            ],
            owner=self._owner,
        )

    def _refuse(self, send: _Send) -> Outcome | None:
        """DONE when this message can't be sent at all. What an earlier claim says goes first: it may have been sent."""
        if refusal := self._refusal(send):
            if refusal == EXPIRED and not self._bury(send, EXPIRED):
                raise LogUnavailable("a message that is too old could not go to the dead letters")
            self._fail([(send, refusal)])
            return DONE
        return None

    def _refusal(self, send: _Send) -> str | None:
        """Why not, None when it can be sent."""
        if send.account is None:
            return "no_channel_account"
        outbound = send.outbound  # of a later attempt the time counts at which an operator asked for it
        since_ms = outbound.routed_at_ms if outbound.attempt else outbound.message.accepted_at_ms
        return EXPIRED if self._now() - since_ms > MAX_AGE_MS else None

    def _bury(self, send: _Send, reason: str) -> bool:
        """Before it is settled: an operator may replay whatever is FAILED like this. False: not now."""
        item = send.item
        self._lease.check()
        with _about(send):
            return self._delivery.bury(Work(item.record, item.attempts, first_failed_ms=item.first_failed_ms), reason)

    def _heed(self, send: _Send, claim: DeliveryClaim) -> Outcome | None:
        """What an earlier claim says; None: send."""
        match claim.state:
            case DeliveryState.CLAIMED:
                return None
            case DeliveryState.BUSY:
                return Outcome(Verdict.PAUSED, after_s=1.0, reason="busy")
            case DeliveryState.SENT:
                send.external_id = claim.external_id
                self._remember([send])  # the worker that sent it may have died before it could
                return DONE
            case DeliveryState.FAILED:
                self._fail([(send, claim.reason or "failed")])
                # Whoever was to write the dead letter of what broke may have died before it could.
                return Outcome(Verdict.POISON, reason=BROKE) if claim.reason == BROKE else DONE
            case DeliveryState.ABANDONED:
                return self._look_before_sending_again(send, claim)

    def _look_before_sending_again(self, send: _Send, claim: DeliveryClaim) -> Outcome | None:
        """It may have been delivered: wait for evidence, then send once more and no more, and not even once where the
        channel says so."""
        if evidence := self._evidence(send):
            send.external_id = evidence
            self._settle([send])
            return DONE
        if left_ms := self._left_to_wait_ms(claim):
            return self._not_yet([send.key], wait_ms=min(left_ms, LOOK_EVERY_MS), reason="ambiguous")
        if not self._delivery.sender.capabilities.resend_ambiguous:
            return self._leave_unknown(send, [send.key])
        return self._try_again(send)

    def _try_again(self, send: _Send) -> Outcome | None:
        """None: send it, for the second and last time."""
        [second] = self._claims([send.second_key])
        send.second = second.state
        if second.state is DeliveryState.CLAIMED:
            metrics.AMBIGUOUS.labels(self._delivery.channel).inc()
            return None
        if second.state is DeliveryState.BUSY:
            return self._not_yet([send.key], wait_ms=1000, reason="busy")
        tries = [send.key, send.second_key]
        if left_ms := self._left_to_wait_ms(second):
            return self._not_yet(tries, wait_ms=min(left_ms, LOOK_EVERY_MS), reason="ambiguous")
        return self._leave_unknown(send, tries)

    def _evidence(self, send: _Send) -> str | None:
        """What the platform calls it, if a status told that it has it from this attempt, or that it arrived at all."""
        outbound = send.outbound
        told = self._delivery.store.transitions(outbound.message)
        ours = (each.change for each in told if each.recipient == outbound.recipient)
        proofs = (change for change in ours if change.attempt == outbound.attempt or change.status in ARRIVED)
        return next((change.external_id for change in proofs if change.external_id), None)

    def _left_to_wait_ms(self, claim: DeliveryClaim) -> int:
        return max(0, EVIDENCE_WAIT_MS - (self._now() - claim.since_ms))

    def _not_yet(self, tries: Sequence[DeliveryKey], *, wait_ms: int, reason: str) -> Outcome:
        """As much in doubt as it was."""
        doubts = [DeliveryOutcome(key, uncertain=True) for key in tries]
        self._delivery.store.settle_deliveries(doubts, owner=self._owner)
        return Outcome(Verdict.PAUSED, after_s=wait_ms / 1000, reason=reason)

    def _leave_unknown(self, send: _Send, tries: Sequence[DeliveryKey]) -> Outcome:
        """FAILED until evidence comes; from its dead letter an operator may send it as a new attempt."""
        if not self._bury(send, UNKNOWN):
            return self._not_yet(tries, wait_ms=EVIDENCE_WAIT_MS, reason="dead_letters_wait")
        metrics.AMBIGUOUS.labels(self._delivery.channel).inc()
        self._fail([(send, UNKNOWN)])
        return DONE

    def _send(self, send: _Send) -> None:
        """One HTTP conversation, on a thread of the pool; the store is not touched here.

        Raises nothing: the neighbours of what breaks here were sent, and must be settled.
        """
        account, channel = send.account, self._delivery.channel
        assert account is not None  # noqa: S101 - `_refusal` saw to it
        until_s = self._delivery.clock.monotonic_s() + POST_WITHIN_S
        outgoing = replace(send.outgoing, before_post=lambda: self._may_post(send, until_s))
        try:
            self._lease.check()
            with self._delivery.breakers.guard(channel, account.account_id), _timer(channel):
                send.external_id = self._delivery.sender.send(account, outgoing)
        except DeliveryError as error:
            send.error = error
        except Exception as error:
            send.error = self._meaning(send, error)
        metrics.DELIVERIES.labels(channel, _ended(send.error)).inc()

    def _may_post(self, send: _Send, until_s: float) -> None:
        """The last moment at which a send can be called off."""
        self._lease.check()
        if self._delivery.clock.monotonic_s() > until_s:
            raise TransientDeliveryError("too_slow", "the upload took too long", outage=False)
        send.posting = True

    def _meaning(self, send: _Send, error: Exception) -> DeliveryError:
        """What it means for a message that a part of ours failed while it was sent. An OSError is a file that cannot be
        read just now, or a machine that gives no more; a bug is neither."""
        if not isinstance(error, Unavailable | LeaseLost | OSError):
            with _about(send):
                logger.exception("a send broke", extra={"channel": self._delivery.channel})
            send.bug = type(error).__name__
            if send.item.attempts + 1 >= MAX_BROKEN or not self._parks:
                return PermanentDeliveryError(BROKE)
        reason = send.bug or ("lease_lost" if isinstance(error, LeaseLost) else "unavailable")
        if send.posting:
            return AmbiguousDeliveryError(reason, outage=False)
        if send.bug:
            return TransientDeliveryError(reason, outage=False)
        return PausedDeliveryError(reason, outage=False)

    def _settle(self, sends: Sequence[_Send]) -> None:
        """Record how a wave ended: what was sent first, it is the evidence that keeps a repeat from sending again."""
        settled = [settlement for send in sends for settlement in _settlements(send)]
        self._delivery.store.settle_deliveries(settled, owner=self._owner)
        sent = [send for send in sends if send.error is None]
        if sent:
            self._remember(sent)
        refused = [(send, send.error.reason) for send in sends if isinstance(send.error, PermanentDeliveryError)]
        if refused:
            self._report([self._failed(send, reason) for send, reason in refused])

    def _remember(self, sends: Sequence[_Send]) -> None:
        """What the platform calls our messages, and where answers of these people belong."""
        refs: list[ExternalRef] = []
        # Of an account that is gone nothing is kept: nobody answers through it.
        sent = [(send, account) for send in sends if (account := send.account) and send.external_id is not None]
        known, bound = self._known_people([(send, account) for send, account in sent if not send.by_agent]), {}
        for send, account in sent:
            message = send.outbound.message
            refs.append(
                ExternalRef(
                    channel=self._delivery.channel,
                    account_id=account.account_id,
                    external_id=send.external_id or "",
                    message_id=message.message_id,
                    conversation_id=message.conversation_id,
                    party=send.outbound.recipient,
                    attempt=send.outbound.attempt,
                )
            )
            person = account.account_id, _address(send.outbound)
            if binding := self._binding(send, account, known.get(person)):
                known[person] = bound[person] = binding
        if refs:
            self._delivery.store.note_externals(refs)
        if bound:
            self._delivery.store.bind_contacts(list(bound.values()))
        self._delivery.noted(refs)

    def _known_people(self, sent: Sequence[tuple[_Send, Account]]) -> dict[tuple[str, str], Contact]:
        """Those of the recipients whom we know, by account id and address."""
        wanted: dict[tuple[UUID, str], set[str]] = {}
        for send, account in sent:
            place = send.outbound.message.workspace_id, account.account_id
            wanted.setdefault(place, set()).add(_address(send.outbound))
        return {
            (account_id, address): contact
            for (workspace_id, account_id), addresses in wanted.items()
            for address, contact in self._delivery.store.contacts(
                workspace_id=workspace_id, channel=self._delivery.channel, account_id=account_id, addresses=addresses
            ).items()
        }

    def _binding(self, send: _Send, account: Account, known: Contact | None) -> Contact | None:
        """The person's next message comes to this conversation: if it is their first, or if an agent of ours wrote.

        Whoever else may write to them must not draw to themselves what they tell the agents.
        """
        message = send.outbound.message
        elsewhere = known is not None and known.conversation_id != message.conversation_id
        if elsewhere and not send.by_agent:
            return None
        if known is not None and known.last_message_id > message.message_id:
            return None  # bindings move forward only
        return Contact(
            workspace_id=message.workspace_id,
            channel=self._delivery.channel,
            account_id=account.account_id,
            address=_address(send.outbound),
            conversation_id=message.conversation_id,
            last_message_id=message.message_id,
        )

    def _fail(self, refusals: Iterable[tuple[_Send, str]]) -> None:
        """These end here: FAILED with the reason, for good."""
        news, outcomes = [], []
        for send, reason in refusals:
            outcomes.append(DeliveryOutcome(send.key, failed_reason=reason))
            news.append(self._failed(send, reason))
            metrics.DELIVERIES.labels(self._delivery.channel, "refused").inc()
        self._delivery.store.settle_deliveries(outcomes, owner=self._owner)
        self._report(news)

    def _failed(self, send: _Send, reason: str) -> NewRecord:
        with _about(send):
            logger.info("not delivered", extra={"channel": self._delivery.channel, "reason": reason})
        return _news(send, Status.FAILED, self._now(), reason=reason)

    def _report(self, news: Sequence[NewRecord]) -> None:
        if news:
            self._lease.check()
            self._delivery.log.append(news, onward=True)

    def _outcome(self, send: _Send) -> Outcome:
        match send.error:
            case PermanentDeliveryError() if send.bug:
                return Outcome(Verdict.POISON, reason=send.bug)
            case None | PermanentDeliveryError():
                return DONE
            case PausedDeliveryError() as error:
                return Outcome(Verdict.PAUSED, after_s=error.retry_after_s or PAUSED_S, reason=error.reason)
            case AmbiguousDeliveryError() as error:
                return Outcome(Verdict.RETRY, after_s=EVIDENCE_WAIT_MS / 1000, reason=error.reason)
            case error:
                # To what is parked already an outage is a pause: it says nothing about this recipient.
                verdict = Verdict.PAUSED if error.outage and not self._parks else Verdict.RETRY
                delay_s = error.retry_after_s or self._delivery.retry_delay_s(send.item.attempts)
                return Outcome(verdict, after_s=delay_s, reason=error.reason)

    def _advance(self, threads: Threads, heads: Sequence[tuple[Item, Outbound]], outcomes: Outcomes) -> Outcomes:
        """Go on in conversations whose head is done; park or hold back the others. Answers what was parked."""
        parked: Outcomes = {}
        for item, outbound in heads:
            conversation_id = outbound.message.conversation_id
            outcome = outcomes[item.number]
            if outcome.verdict is Verdict.DONE:
                threads[conversation_id].popleft()
                if threads[conversation_id]:
                    continue
            elif self._parks and self._failing_for_long(item, outcome):
                wait_ms = max(PARK_FIRST_MS, _as_asked_ms(outcome))
                with tracing.about(item.record, outbound.message.message_id):
                    logger.info("parked", extra={"channel": self._delivery.channel, "reason": outcome.reason})
                parked |= _park(threads[conversation_id], self._delivery, wait_ms=wait_ms)
            del threads[conversation_id]
        return parked

    def _failing_for_long(self, item: Item, outcome: Outcome) -> bool:
        """It must not hold the partition's watermark any longer; what concerns a whole account is given more time."""
        patience_ms = {Verdict.RETRY: PARK_AFTER_MS, Verdict.PAUSED: PARK_PAUSED_AFTER_MS}.get(outcome.verdict)
        if patience_ms is None:
            return False
        failed_long = bool(item.first_failed_ms) and self._now() - item.first_failed_ms > patience_ms
        return failed_long or outcome.after_s * 1000 > patience_ms

    def _now(self) -> int:
        return self._delivery.clock.now_ms()


def _address(outbound: Outbound) -> str:
    return Party.parse(outbound.recipient).address


def _ended(error: DeliveryError | None) -> str:
    """One of `metrics.SENDS`."""
    match error:
        case None:
            return "sent"
        case PermanentDeliveryError():
            return "permanent"
        case PausedDeliveryError():
            return "paused"
        case AmbiguousDeliveryError():
            return "ambiguous"
        case _:
            return "transient"


def _timer(channel: str) -> AbstractContextManager[object]:
    return metrics.DELIVERY_SECONDS.labels(channel).time()


def _supersedes(ours: str, theirs: str) -> bool:
    """Whether their batch was taken from them: of the owners ``place@epoch`` of a place, the highest epoch counts."""
    our_place, _, our_epoch = ours.rpartition("@")
    their_place, _, their_epoch = theirs.rpartition("@")
    return bool(our_place) and our_place == their_place and their_epoch < our_epoch


def status_record(change: StatusChange, headers: Mapping[str, str]) -> NewRecord:
    """A status change as `status-updates` takes it; ``headers`` as `tracing` gives them."""
    return NewRecord(topics.STATUS_UPDATES, str(change.conversation_id), codec.encode(change), headers)


def _by_conversation(values: Iterable[tuple[Item, Outbound]]) -> Threads:
    threads: Threads = {}
    for item, outbound in values:
        threads.setdefault(outbound.message.conversation_id, deque()).append((item, outbound))
    return threads


def _park_behind_parked(threads: Threads, delivery: Delivery) -> Outcomes:
    """Conversations that hold something back keep their order: what comes now goes behind it."""
    outcomes: Outcomes = {}
    topic = topics.outbound(delivery.channel)
    for scope in delivery.store.parked_scopes([ParkScope(topic, conversation_id) for conversation_id in threads]):
        outcomes |= _park(threads.pop(scope.conversation_id), delivery, wait_ms=PARK_FIRST_MS)
    return outcomes


def _park(thread: Sequence[tuple[Item, Outbound]], delivery: Delivery, *, wait_ms: int) -> Outcomes:
    now_ms = delivery.clock.now_ms()
    conversation_id = thread[0][1].message.conversation_id
    records = [
        ParkedRecord(record.source, record.offset, record.value, now_ms, item.attempts, tracing.origin(record))
        for item, record in ((item, item.record) for item, _ in thread)
    ]
    scope = ParkScope(topics.outbound(delivery.channel), conversation_id)
    delivery.store.park(scope, records, due_at_ms=now_ms + wait_ms)
    metrics.PARKED.labels(delivery.channel).inc(len(records))
    return {item.number: DONE for item, _ in thread}


def _as_item(parked: ParkedRecord, scope: ParkScope) -> ParkedItem:
    key = str(scope.conversation_id)
    headers = tracing.headers(parked.request_id)
    record = Record(parked.source, parked.offset, key, parked.value, headers, parked.parked_at_ms)
    return ParkedItem(record, parked.attempts, parked.parked_at_ms)


def _outgoing(outbound: Outbound, account: Account | None, delivery: Delivery, *, retries: int) -> Outgoing:
    message = outbound.message
    return Outgoing(
        correlation_id=outbound.correlation_id,
        to=Party.parse(outbound.recipient).address,
        text=message.content,
        media=delivery.media_for(outbound),
        reply_to_external_id=_quoted(outbound, account, delivery.store) if account else None,
        retries=retries,
    )


def _quoted(outbound: Outbound, account: Account, store: MessageStore) -> str | None:
    """What the answered message is called in the chat of this person with this account of ours, if it is in there.

    Ids of other chats mean nothing there: a platform refuses a message that quotes one.
    """
    reply_to = outbound.message.reply_to
    answered = store.message(reply_to) if reply_to else None
    if answered is None:
        return None
    if answered.sender_id == outbound.recipient:
        return answered.external_id if answered.account_id == account.account_id else None
    return _arrived_as(answered, outbound, account, store)


def _arrived_as(answered: Message, outbound: Outbound, account: Account, store: MessageStore) -> str | None:
    """The same for one that went to this person: as the platform's own news about it say."""
    if outbound.recipient not in answered.recipients:
        return None
    told = [each.change for each in store.transitions(answered) if each.recipient == outbound.recipient]
    ids = [change.external_id for change in told if change.external_id and change.status is not Status.FAILED]
    through_account = store.externals(outbound.channel, account.account_id, ids) if ids else {}
    return next((external_id for external_id in ids if external_id in through_account), None)


def _settlements(send: _Send) -> list[DeliveryOutcome]:
    """Of its claim, and of that of a second try if this was it; nobody asks for that one once the first is final."""
    match send.error:
        case None:
            return [DeliveryOutcome(send.key, external_id=send.external_id)]
        case PermanentDeliveryError() as error:
            return [DeliveryOutcome(send.key, failed_reason=error.reason)]
        case AmbiguousDeliveryError():
            tries = [send.key, send.second_key] if send.again else [send.key]
            return [DeliveryOutcome(key, uncertain=True) for key in tries]
        case _ if send.again:
            # The first try stays in doubt, whatever the second one met; this one may be made again.
            return [DeliveryOutcome(send.key, uncertain=True), DeliveryOutcome(send.second_key)]
        case _:
            return [DeliveryOutcome(send.key)]


def _about(send: _Send) -> AbstractContextManager[None]:
    return tracing.about(send.item.record, send.outbound.message.message_id)


def _news(send: _Send, status: Status, at_ms: int, *, reason: str) -> NewRecord:
    message = send.outbound.message
    change = StatusChange(
        message_id=message.message_id,
        conversation_id=message.conversation_id,
        recipient=send.outbound.recipient,
        status=status,
        at_ms=at_ms,
        attempt=send.outbound.attempt,
        reason=reason,
        external_id=send.external_id,
    )
    return status_record(change, tracing.onward(send.item.record))
