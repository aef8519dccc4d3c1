"""Links that carry their own permission: HMAC-SHA256 over the file's id and the second at which the link ends."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlencode

from django.utils.crypto import constant_time_compare, salted_hmac

from files.errors import BadSignature, LinkExpired

_SALT: Final = "chat4all.files.link"  # derives a key of its own from SECRET_KEY
_EXPIRES: Final = re.compile(r"[0-9]{1,12}")


def signed_query(file_id: str, expires_s: int) -> str:
    """``expires=…&signature=…`` for a link to the file that ends at the Unix time ``expires_s``."""
    return urlencode({"expires": expires_s, "signature": _signature(file_id, str(expires_s))})


def check(file_id: str, *, expires: str, signature: str, now_s: float) -> None:
    """Raise BadSignature unless we signed exactly this, LinkExpired when its time is over.

    The signature is looked at first, so that nobody learns anything from a link they made up.
    """
    if not _EXPIRES.fullmatch(expires) or not constant_time_compare(signature, _signature(file_id, expires)):
        raise BadSignature("The link was not made by this server, or it was changed.")
    if now_s >= int(expires):
        raise LinkExpired("The link has expired; ask for a new one.")


def _signature(file_id: str, expires: str) -> str:
    return salted_hmac(_SALT, f"{file_id}:{expires}", algorithm="sha256").hexdigest()
