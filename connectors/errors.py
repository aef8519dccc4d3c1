"""How sending can fail: four kinds, and the kind decides what happens next."""

from __future__ import annotations

from core.errors import Chat4AllError, InvalidRequest


class DeliveryError(Chat4AllError):
    """Root. ``reason`` is a stable code for people and dashboards, such as ``platform:131026`` or ``timeout``.

    ``outage`` says what it means for others: True when the platform or the whole account seems to be down (a circuit
    breaker counts it), False when it concerns this message only or the platform merely asks for patience.
    """

    code = "delivery_failed"
    outage = False

    def __init__(
        self, reason: str, detail: str = "", *, retry_after_s: float | None = None, outage: bool | None = None
    ) -> None:
        super().__init__(detail or reason, retry_after_s=retry_after_s)
        self.reason = reason
        if outage is not None:
            self.outage = outage


class TransientDeliveryError(DeliveryError):
    """Surely not delivered (refused connection, throttled, told to retry): send again, not before ``retry_after_s``."""

    outage = True


class PermanentDeliveryError(DeliveryError):
    """The platform refused this message for good: never send it again."""


class PausedDeliveryError(DeliveryError):
    """The whole account cannot send now (authentication, outage, breaker open): hold everything, burn no attempt."""

    outage = True


class AmbiguousDeliveryError(DeliveryError):
    """It may have been delivered (read timeout, unreadable 2xx): look before sending again."""

    outage = True


class UnknownChannel(InvalidRequest):
    """No connector serves this channel here."""

    code = "unknown_channel"
    title = "No such channel"


class BadSignature(Chat4AllError):
    """A webhook whose signature is missing or wrong: nothing of it was parsed."""

    code = "bad_signature"
    http_status = 401
    title = "The webhook's signature is missing or wrong"


class BadWebhook(InvalidRequest):
    """A correctly signed webhook that is not what the platform documents."""

    code = "bad_webhook"
    title = "The webhook's body is not what the platform documents"


class InvalidAddress(InvalidRequest):
    """An address that the channel cannot have, such as a number that is not E.164."""

    code = "invalid_address"
    title = "Not an address on that channel"
