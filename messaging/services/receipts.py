"""Which messages of ours the receipts of a webhook are about, and what becomes of those that name none (yet).

They come together, as platforms tell of many at once: what can be placed goes to `status-updates`, and the rest waits
in a record of its own, behind which nobody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID, uuid4

import msgspec

from connectors.base import StatusReport
from core.clock import Clock
from core.failpoints import WAITS
from core.ids import uuid7_ms
from messaging import codec, metrics, topics, tracing
from messaging.domain import (
    ExternalRef,
    InboundEvent,
    InboundReceipts,
    Message,
    Party,
    Reference,
    Status,
    StatusChange,
    correlated,
)
from messaging.ports import DeliveryKey, DeliveryOutcome, MessageStore, NewRecord, Record
from messaging.services.batches import Item
from messaging.services.deliver import status_record
from messaging.services.recent import RecentReferences
from messaging.work import DONE, Outcome, Verdict

TOGETHER: Final = 100  # receipts of one record
TOGETHER_BYTES: Final = 64 * 1024  # of them, as platforms write them: 100 of WhatsApp's are 40 KB
# Behind the key of those that could not be placed at their first look: until then an outage may have held up them and
# the message's sender alike, so that only now their time begins.
WAITING: Final = "~waiting"
UNKNOWN_WAIT_MS: Final = 10_000
# A receipt may be faster than the answer to the send: its sender is about to write what the platform calls the message.
# To write the same before it, as evidence, would cost more than all else about a receipt, so that one which names a
# message of ours waits until that sender is slow, or gone.
EARLY_MS: Final = int(2_000 * WAITS)
AGAIN_MS: Final = 500  # between two looks at what waits

References = Mapping[Reference, ExternalRef]
Told = InboundEvent | InboundReceipts  # a record of an earlier release's holds one receipt, as it does a message


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a platform wrote of one message that an account sent, and what that says. ``early``: it may be faster than
    the answer to its send."""

    event: Told
    payload: dict[str, object]
    report: StatusReport
    early: bool

    @classmethod
    def of(cls, event: Told, payload: dict[str, object], report: StatusReport, *, now_ms: int) -> Receipt:
        # Not by a clock that is wrong: it could stay early for minutes.
        early = _correlation(report) is not None and 0 <= now_ms - event.received_at_ms < EARLY_MS
        return cls(event, payload, report, early)

    @property
    def place(self) -> Reference:
        return self.event.channel, self.event.account_id, self.report.external_id


def records_of(told: InboundReceipts, headers: Mapping[str, str], *, suffix: str = "") -> Iterator[NewRecord]:
    """For `inbound`: as few as they fit into, each under a key that no other record has."""
    some: list[dict[str, object]] = []
    size = 0
    for payload in told.payloads:
        length = len(msgspec.json.encode(payload))
        if some and (len(some) == TOGETHER or size + length > TOGETHER_BYTES):
            yield _record(replace(told, payloads=tuple(some)), headers, suffix)
            some, size = [], 0
        some.append(payload)
        size += length
    if some:
        yield _record(replace(told, payloads=tuple(some)), headers, suffix)


def _record(told: InboundReceipts, headers: Mapping[str, str], suffix: str) -> NewRecord:
    return NewRecord(topics.INBOUND, f"{told.account_id}:receipts:{uuid4().hex}{suffix}", codec.encode(told), headers)


def rest_s(record: Record, now_ms: int) -> float:
    """How long one that waits must not be looked at yet, as that was done just now."""
    age_ms = now_ms - record.appended_at_ms
    return (AGAIN_MS - age_ms) / 1000 if record.key.endswith(WAITING) and 0 <= age_ms < AGAIN_MS else 0.0


def references(receipts: Sequence[Receipt], *, store: MessageStore, recent: RecentReferences) -> References:
    """What they are about, looked up together: each message of ours comes back with three.

    By the platform's id; else by the id of ours that the platform sent back, and then that is kept. Raises
    StoreUnavailable.
    """
    chosen: dict[Reference, Receipt] = {}
    for receipt in receipts:  # of several about one message one that names it as we do, and not just now, if any does
        if receipt.place not in chosen or (_correlation(receipt.report) is not None and not receipt.early):
            chosen[receipt.place] = receipt
    known = recent.get(chosen, store)
    unknown = [receipt for place, receipt in chosen.items() if place not in known and not receipt.early]
    return known | _kept_evidence(_correlated(unknown, store), store)


def _kept_evidence(refs: Sequence[ExternalRef], store: MessageStore) -> dict[Reference, ExternalRef]:
    """The platform has these, whatever the send calls met or will meet: nobody sends them again."""
    if not refs:
        return {}
    outcomes = [
        DeliveryOutcome(DeliveryKey(ref.message_id, ref.party, ref.attempt), external_id=ref.external_id)
        for ref in refs
    ]
    store.settle_deliveries(outcomes, owner="platform")
    store.note_externals(refs)
    return {ref.reference: ref for ref in refs}


def _correlated(receipts: Sequence[Receipt], store: MessageStore) -> list[ExternalRef]:
    """Those that are about a message of ours of the account's own workspace."""
    named = [(receipt, ours) for receipt in receipts if (ours := _correlation(receipt.report))]
    messages = store.messages({message_id for _, (message_id, _) in named}) if named else {}
    refs = []
    for receipt, (message_id, attempt) in named:
        message = messages.get(message_id)
        if message is None or message.workspace_id != receipt.event.workspace_id:
            continue
        if recipient := _recipient(message, receipt):
            channel, account_id, external_id = receipt.place
            refs.append(
                ExternalRef(
                    channel=channel,
                    account_id=account_id,
                    external_id=external_id,
                    message_id=message.message_id,
                    conversation_id=message.conversation_id,
                    party=recipient,
                    attempt=attempt,
                )
            )
    return refs


def _correlation(report: StatusReport) -> tuple[UUID, int] | None:
    """A message of ours and which attempt to send it, as the platform sent them back."""
    try:
        return correlated(report.correlation_id or "")
    except ValueError:
        return None


def _recipient(message: Message, receipt: Receipt) -> str | None:
    channel = receipt.event.channel
    wanted = str(Party(channel, receipt.report.recipient or ""))
    on_channel = [each for each in message.recipients if Party.parse(each).channel == channel]
    if wanted in on_channel:
        return wanted
    return on_channel[0] if len(on_channel) == 1 else None


def resolve(
    item: Item,
    receipts: Sequence[Receipt],
    refs: References,
    found: list[NewRecord],
    *,
    clock: Clock,
    retry_delay_s: Callable[[int], float],
) -> Outcome:
    """Add to ``found`` what one record's receipts make of our messages, and the others in a record of their own. Where
    none can be placed they wait as they are: while one is early, and once they were put back."""
    placed = [receipt for receipt in receipts if receipt.place in refs]
    rest = [receipt for receipt in receipts if receipt.place not in refs]
    if rest and not placed:
        if any(receipt.early for receipt in rest):
            return Outcome(Verdict.PAUSED, after_s=AGAIN_MS / 1000, reason="early")
        if item.record.key.endswith(WAITING):
            if clock.now_ms() - item.record.appended_at_ms < UNKNOWN_WAIT_MS:
                return Outcome(Verdict.RETRY, after_s=retry_delay_s(item.attempts), reason="unknown_message")
            metrics.INBOUND.labels(rest[0].event.channel, "status_of_unknown").inc(len(rest))
            return DONE
    headers = tracing.onward(item.record)
    for receipt in placed:
        metrics.INBOUND.labels(receipt.event.channel, "StatusReport").inc()
        found += [status_record(change, headers) for change in _news(receipt, refs[receipt.place])]
    if rest:
        found += _put_back(item, rest, headers)
    return DONE


def _put_back(item: Item, rest: Sequence[Receipt], headers: Mapping[str, str]) -> Iterator[NewRecord]:
    """As the kind of record that it is: workers of the release before may be at work beside us."""
    match rest[0].event:
        case InboundReceipts() as event:
            left = replace(event, payloads=tuple(receipt.payload for receipt in rest))
            yield from records_of(left, headers, suffix=WAITING)
        case InboundEvent():
            yield NewRecord(topics.INBOUND, item.record.key + WAITING, item.record.value, headers)


def _news(receipt: Receipt, target: ExternalRef) -> Iterator[StatusChange]:
    """What our message's status becomes by it."""
    report, status = receipt.report, Status(receipt.report.status)
    if status is Status.SENT and not target.attempt:
        return  # so it stands since it was stored; that the platform has it is known by its id
    yield StatusChange(
        message_id=target.message_id,
        conversation_id=target.conversation_id,
        recipient=target.party,
        status=status,
        # Meta's times are whole seconds: a receipt must not look older than its message.
        at_ms=max(report.at_ms or receipt.event.received_at_ms, uuid7_ms(target.message_id)),
        attempt=target.attempt,
        reason=report.reason,
        external_id=report.external_id,
    )
