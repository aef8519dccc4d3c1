"""Claims: Idempotency-Keys and deliveries. Light-weight transactions only, each write with a revision of its own.

A row is changed by `IF revision = <the one that was read>`, so that of several at once one wins, and a time-out can be
told from a success by looking which revision stands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, Final
from uuid import UUID, uuid4

from core.cache import TtlCache
from messaging.errors import StoreUnavailable
from messaging.ports import DeliveryClaim, DeliveryKey, DeliveryOutcome, DeliveryState, KeyClaim, KeyState
from messaging.stores.cassandra.part import Part, grouped
from messaging.stores.cassandra.session import Call, Conditional, Row, Statement

ROUNDS: Final = 50  # of others that may get in between: then something is wrong
KEY_LIFETIME_MS: Final = 24 * 3600 * 1000

_KEY: Final = "workspace_id = ? AND sender_id = ? AND key = ?"
SELECT_KEY: Final = f"SELECT * FROM ks.idempotency_keys WHERE {_KEY}"
SELECT_KEY_REVISION: Final = f"SELECT revision FROM ks.idempotency_keys WHERE {_KEY}"
INSERT_KEY: Final = (
    "INSERT INTO ks.idempotency_keys (workspace_id, sender_id, key, body_hash, message_id, accepted_at_ms,"
    " lease_until_ms, is_settled, revision) VALUES (?, ?, ?, ?, ?, ?, ?, false, ?) IF NOT EXISTS"
)
RENEW_KEY: Final = (
    "UPDATE ks.idempotency_keys SET body_hash = ?, message_id = ?, accepted_at_ms = ?, lease_until_ms = ?,"
    f" is_settled = false, revision = ? WHERE {_KEY} IF revision = ?"
)
SETTLE_KEY: Final = f"UPDATE ks.idempotency_keys SET is_settled = true, revision = ? WHERE {_KEY} IF EXISTS"
RELEASE_KEY: Final = f"UPDATE ks.idempotency_keys SET lease_until_ms = 0, revision = ? WHERE {_KEY} IF EXISTS"

_CLAIM: Final = "message_id = ? AND recipient = ? AND attempt = ?"
SELECT_CLAIM: Final = f"SELECT * FROM ks.delivery_claims WHERE {_CLAIM}"
SELECT_CLAIM_REVISION: Final = f"SELECT revision FROM ks.delivery_claims WHERE {_CLAIM}"
INSERT_CLAIM: Final = (
    "INSERT INTO ks.delivery_claims (stage, owner, since_ms, lease_until_ms, external_id, reason, revision, message_id,"
    " recipient, attempt) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS"
)
UPDATE_CLAIM: Final = (
    "UPDATE ks.delivery_claims SET stage = ?, owner = ?, since_ms = ?, lease_until_ms = ?, external_id = ?, reason = ?,"
    f" revision = ? WHERE {_CLAIM} IF revision = ?"
)

FREE, SENDING, SENT, FAILED = "free", "sending", "sent", "failed"  # free: surely not sent, whoever comes may try


# --- Idempotency-Keys --------------------------------------------------------------------------------------------


class Keys(Part):
    """See `MessageStore`."""

    def claim_key(
        self,
        *,
        workspace_id: UUID,
        sender_id: str,
        key: str,
        body_hash: str,
        message_id: UUID,
        now_ms: int,
        lease_ms: int,
    ) -> KeyClaim:
        where = workspace_id, sender_id, key
        ours = (body_hash, message_id, now_ms, now_ms + lease_ms)
        with self._db.call() as call:
            revision = uuid4()
            written = {revision}
            if _took_key(call, where, Statement(INSERT_KEY, (*where, *ours, revision)), revision):
                return KeyClaim(KeyState.NEW, message_id, now_ms)
            for _ in range(ROUNDS):
                row = call.row(SELECT_KEY, *where)
                if row and row["revision"] in written:  # one that was given up came through after all
                    return KeyClaim(KeyState.NEW, row["message_id"], row["accepted_at_ms"])
                wanted = ours
                if row and not _is_forgotten(row, now_ms):
                    state = _key_state(row, body_hash=body_hash, now_ms=now_ms)
                    if state is not KeyState.NEW:
                        return KeyClaim(state, row["message_id"], row["accepted_at_ms"])
                    wanted = (row["body_hash"], row["message_id"], row["accepted_at_ms"], now_ms + lease_ms)
                revision = uuid4()
                written.add(revision)
                renew = Statement(RENEW_KEY, (*wanted, revision, *where, row["revision"] if row else None))
                if _took_key(call, where, renew, revision):
                    return KeyClaim(KeyState.NEW, wanted[1], wanted[2])
        raise StoreUnavailable("an Idempotency-Key kept changing; try again")

    def answered_key(self, *, workspace_id: UUID, sender_id: str, key: str, body_hash: str, now_ms: int) -> UUID | None:
        with self._db.call() as call:
            row = call.row(SELECT_KEY, workspace_id, sender_id, key)
        if row is None or _is_forgotten(row, now_ms) or not row["is_settled"] or row["body_hash"] != body_hash:
            return None
        message_id: UUID = row["message_id"]
        return message_id

    def settle_key(self, *, workspace_id: UUID, sender_id: str, key: str) -> None:
        self._mark(SETTLE_KEY, workspace_id, sender_id, key)

    def release_key(self, *, workspace_id: UUID, sender_id: str, key: str) -> None:
        self._mark(RELEASE_KEY, workspace_id, sender_id, key)

    def _mark(self, update: str, *where: Any) -> None:
        revision = uuid4()
        with self._db.call() as call:
            if _try_key(call, where, Statement(update, (revision, *where)), revision) is None:
                raise StoreUnavailable("what became of an Idempotency-Key was not written; try again")


def _took_key(call: Call, where: Sequence[Any], write: Statement, revision: UUID) -> bool:
    return bool(_try_key(call, where, write, revision))


def _try_key(call: Call, where: Sequence[Any], write: Statement, revision: UUID) -> bool | None:
    [applied] = call.conditionally([Conditional(write, Statement(SELECT_KEY_REVISION, where), revision)])
    return applied


def _is_forgotten(row: Row, now_ms: int) -> bool:
    """Too old, or a rest of it whose other cells have expired."""
    accepted_at_ms = row["accepted_at_ms"]
    return accepted_at_ms is None or now_ms - accepted_at_ms >= KEY_LIFETIME_MS


def _key_state(row: Row, *, body_hash: str, now_ms: int) -> KeyState:
    if row["body_hash"] != body_hash:
        return KeyState.MISMATCH
    if row["is_settled"]:
        return KeyState.DONE
    return KeyState.RUNNING if row["lease_until_ms"] > now_ms else KeyState.NEW


# --- deliveries --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """A delivery claim as it is stored."""

    stage: str = FREE
    owner: str = ""
    since_ms: int = 0  # when the owner began, or the first of those that vanished
    lease_until_ms: int = 0
    external_id: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Claimer:
    """Who claims, when and for how long."""

    owner: str
    now_ms: int
    lease_ms: int
    superseded: Callable[[str], bool] | None

    def taken(self, since_ms: int) -> Held:
        return Held(SENDING, self.owner, since_ms, self.now_ms + self.lease_ms)

    def claim(self, key: DeliveryKey, held: Held) -> tuple[Held, DeliveryClaim]:
        """What is to be stored, and the answer."""
        if held.stage in (SENT, FAILED):
            return held, DeliveryClaim(key, DeliveryState(held.stage), held.external_id, held.reason)
        if held.stage == FREE:
            return self.taken(self.now_ms), DeliveryClaim(key, DeliveryState.CLAIMED)
        if held.owner == self.owner:
            until_ms = max(held.lease_until_ms, self.now_ms + self.lease_ms)
            return replace(held, lease_until_ms=until_ms), DeliveryClaim(key, DeliveryState.CLAIMED)
        since_ms = held.since_ms
        if held.lease_until_ms > self.now_ms:
            if self.superseded is None or not self.superseded(held.owner):
                return held, DeliveryClaim(key, DeliveryState.BUSY)
            since_ms = self.now_ms
        # Whoever comes to look is no sender: the time to wait goes on from the first that vanished.
        return self.taken(since_ms), DeliveryClaim(key, DeliveryState.ABANDONED, since_ms=since_ms)


class Deliveries(Part):
    """See `MessageStore`."""

    _own: TtlCache[DeliveryKey, Row]
    """Claims as this process wrote them: settled on the revision that it left, without reading it again first."""

    def claim_deliveries(
        self,
        keys: Sequence[DeliveryKey],
        *,
        owner: str,
        now_ms: int,
        lease_ms: int,
        superseded: Callable[[str], bool] | None = None,
    ) -> list[DeliveryClaim]:
        if not keys:
            return []
        claimer = _Claimer(owner, now_ms, lease_ms, superseded)
        open_ = list(dict.fromkeys(keys))
        answers: dict[DeliveryKey, DeliveryClaim] = {}
        with self._db.call() as call:
            fresh = claimer.taken(now_ms)
            fresh_writes = [_written(key, fresh, INSERT_CLAIM) for key in open_]
            inserted = call.conditionally(fresh_writes)
            answers |= {
                key: DeliveryClaim(key, DeliveryState.CLAIMED)
                for key, ours in zip(open_, inserted, strict=True)
                if ours
            }
            for write, key in zip(fresh_writes, open_, strict=True):
                if key in answers:
                    self._own.put(key, _as_row(fresh, write.leaves))
            _change(call, [key for key in open_ if key not in answers], claimer.claim, answers)
        return [answers[key] for key in keys]

    def settle_deliveries(self, outcomes: Sequence[DeliveryOutcome], *, owner: str) -> None:
        by_key = grouped(outcomes, lambda outcome: outcome.key)

        def settle(key: DeliveryKey, held: Held) -> tuple[Held, None]:
            for outcome in by_key[key]:
                held = _settled(held, outcome, owner=owner)
            return held, None

        if by_key:
            known = {key: row for key in by_key if (row := self._own.take(key))}
            with self._db.call() as call:
                _change(call, list(by_key), settle, {}, only_existing=True, known=known)

    def settled_deliveries(self, keys: Collection[DeliveryKey]) -> Set[DeliveryKey]:
        asked = list(keys)
        if not asked:
            return set()
        with self._db.call() as call:
            found = call.each(SELECT_CLAIM, [(key.message_id, key.recipient, key.attempt) for key in asked])
        return {key for key, rows in zip(asked, found, strict=True) if rows and rows[0]["stage"] in (SENT, FAILED)}


def _settled(held: Held, outcome: DeliveryOutcome, *, owner: str) -> Held:
    if held.stage == SENT:
        return held
    if outcome.external_id is not None:  # evidence counts whoever brings it
        return replace(held, stage=SENT, external_id=outcome.external_id, reason=None)
    if held.stage != SENDING or held.owner != owner:
        return held
    if outcome.failed_reason is not None:
        return replace(held, stage=FAILED, reason=outcome.failed_reason)
    if outcome.uncertain:
        return replace(held, owner="", lease_until_ms=0)  # nobody's, so that its own sender finds it ABANDONED too
    return replace(held, stage=FREE)


def _change(
    call: Call,
    keys: Sequence[DeliveryKey],
    decide: Callable[[DeliveryKey, Held], tuple[Held, Any]],
    answers: dict[DeliveryKey, Any],
    *,
    only_existing: bool = False,
    known: Mapping[DeliveryKey, Row] | None = None,
) -> None:
    """Store what ``decide`` makes of each claim, over again for those where somebody was faster; fills ``answers``.

    ``known``: claims as they were last seen. One that a write proves right need not be read; that nothing is to be done
    it does not prove.
    """
    open_ = list(keys)
    seen = {key: row for key, row in (known or {}).items() if decide(key, _held(row))[0] != _held(row)}
    written: dict[UUID | str | None, Any] = {}  # by revision what was decided with it
    for _ in range(ROUNDS):
        if not open_:
            return
        unseen = [key for key in open_ if key not in seen]
        read = call.each(SELECT_CLAIM, [(key.message_id, key.recipient, key.attempt) for key in unseen])
        found = dict(zip(unseen, read, strict=True)) | {key: [row] for key, row in seen.items()}
        seen = {}
        writes: dict[DeliveryKey, Conditional] = {}
        decided: dict[DeliveryKey, Any] = {}
        for key in open_:
            rows = found[key]
            if not rows and only_existing:
                continue
            if rows and rows[0]["revision"] in written:
                # One that was given up came through after all. Decided anew it would be ours as if nobody had begun.
                answers[key] = written[rows[0]["revision"]]
                continue
            held = _held(rows[0]) if rows else Held()
            after, decided[key] = decide(key, held)
            if after != held:
                revision = rows[0]["revision"] if rows else None
                writes[key] = _written(key, after, UPDATE_CLAIM if rows else INSERT_CLAIM, revision, bool(rows))
        written |= {write.leaves: decided[key] for key, write in writes.items()}
        applied = dict(zip(writes, call.conditionally(list(writes.values())), strict=True))
        answers |= {key: answer for key, answer in decided.items() if applied.get(key, True)}
        open_ = [key for key, done in applied.items() if not done]
    raise StoreUnavailable("delivery claims kept changing; try again")


def _written(
    key: DeliveryKey, held: Held, cql: str, revision: UUID | None = None, is_update: bool = False
) -> Conditional:
    """All columns each time, so that they expire together."""
    ours = uuid4()
    where = (key.message_id, key.recipient, key.attempt)
    values = (held.stage, held.owner, held.since_ms, held.lease_until_ms, held.external_id, held.reason, ours, *where)
    write = Statement(cql, (*values, revision) if is_update else values)
    return Conditional(write, Statement(SELECT_CLAIM_REVISION, where), ours)


def _as_row(held: Held, revision: UUID | str | None) -> Row:
    """As it would be read."""
    return {**asdict(held), "revision": revision}


def _held(row: Row) -> Held:
    return Held(
        stage=row["stage"] or FREE,
        owner=row["owner"] or "",
        since_ms=row["since_ms"] or 0,
        lease_until_ms=row["lease_until_ms"] or 0,
        external_id=row["external_id"],
        reason=row["reason"],
    )
