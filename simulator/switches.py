"""What may be turned while it runs: delays, rates, limits, outages. Frozen: a change makes a new value."""

from __future__ import annotations

import random
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Rate = Annotated[float, Meta(ge=0, le=1)]
Millis = Annotated[int, Meta(ge=0, le=3_600_000)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class StatusDelays(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From the moment of accept. A status never overtakes the one before it, unless reordering strikes."""

    sent: Millis = 30
    delivered: Millis = 120
    read: Millis = 400


class Switches(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates are probabilities for each send (or each webhook item); everything is off unless turned on."""

    seed: int = 1
    # how the Graph API behaves
    latency_ms: Millis = 0
    latency_jitter_ms: Millis = 0
    outage: bool = False  # every call answers 503; webhooks go on
    failure_rate: Rate = 0.0  # 5xx, surely not sent
    throttle_rate: Rate = 0.0  # 130429
    throttle_status: Literal[400, 429] = 400  # of the HTTP answer with 130429
    ambiguous_rate: Rate = 0.0  # accepted, but the answer never arrives
    ambiguous_mode: Literal["close", "hang", "garbage"] = "close"
    messages_per_s: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0  # per account, 130429 beyond; 0 is unlimited
    pair_limit: bool = False  # 131056
    pair_burst: Count = 45
    pair_period_s: Annotated[float, Meta(gt=0, le=86_400)] = 6.0
    window_enforced: bool = False  # 131047 when the person has not written within window_s
    window_s: Annotated[float, Meta(gt=0, le=604_800)] = 86_400.0
    retry_after_s: Annotated[int, Meta(ge=0, le=86_400)] = 0  # told with every "later" (131016, 130429, 131056)
    busy_numbers: frozenset[str] = frozenset()  # refused for now (131056)
    unknown_numbers: frozenset[str] = frozenset()  # refused at once (131026)
    fail_numbers: frozenset[str] = frozenset()  # accepted, then a failed status (131026)
    not_available_code: Literal[551, 200, 10] = 551  # Instagram's answer to fail_numbers, which has no failed status
    short_brazilian_ids: bool = False  # WhatsApp's ids of old Brazilian accounts lack the ninth digit
    media_url_ttl_s: Annotated[float, Meta(ge=0, le=86_400)] = 300.0
    # what comes back
    status_delay_ms: StatusDelays = StatusDelays()
    auto_read: bool = True
    echoes: bool = True  # Instagram: our own messages come back marked is_echo
    duplicate_rate: Rate = 0.0
    duplicate_delay_ms: Millis = 500  # a duplicate comes up to this much later
    reorder_rate: Rate = 0.0  # the last two pieces of news about a message swap places: read before delivered
    early_status_rate: Rate = 0.0  # WhatsApp: `sent` is delivered before the send call returns
    # how webhooks travel
    webhook_max_batch: Count = 100
    webhook_linger_ms: Millis = 5
    webhook_timeout_ms: Annotated[int, Meta(ge=10, le=600_000)] = 10_000
    redeliver_base_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 200
    redeliver_max_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 5_000
    redeliver_attempts: Count = 500  # then the batch is given up, and counted

    def changed(self, patch: dict[str, Any]) -> Switches:
        """These switches with some turned; nested delays too. Raises msgspec.ValidationError naming the field."""
        merged = msgspec.to_builtins(self) | patch
        if isinstance(delays := patch.get("status_delay_ms"), dict):
            merged["status_delay_ms"] = msgspec.to_builtins(self.status_delay_ms) | delays
        changed = msgspec.convert(merged, Switches)
        names = ("busy_numbers", "unknown_numbers", "fail_numbers")
        numbers: dict[str, frozenset[str]] = {name: getattr(changed, name) for name in names}
        return msgspec.structs.replace(
            changed, **{name: frozenset(map(digits, them)) for name, them in numbers.items()}
        )


def digits(address: str) -> str:
    """A phone number as WhatsApp writes it: ``+55 (11) 99999-8888`` → ``5511999998888``."""
    return address.translate(_PUNCTUATION)


_PUNCTUATION = str.maketrans("", "", " +-().")


class Dice:
    """Chances from one seed. Each purpose has its own stream, so that one rate does not shift another's luck."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[str, random.Random] = {}

    def hits(self, purpose: str, rate: float) -> bool:
        return rate > 0 and self.between(purpose, 0, 1) < rate

    def between(self, purpose: str, low: float, high: float) -> float:
        stream = self._streams.get(purpose)
        if stream is None:
            stream = self._streams[purpose] = random.Random(f"{self._seed}:{purpose}")  # noqa: S311 (luck, no secret)
        return low + (high - low) * stream.random()
