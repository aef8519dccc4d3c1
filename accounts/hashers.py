"""argon2id with bounded memory."""

from __future__ import annotations

import threading
from typing import Final

from django.contrib.auth.hashers import Argon2PasswordHasher

_AT_ONCE: Final = threading.BoundedSemaphore(4)


class Argon2id(Argon2PasswordHasher):
    """OWASP's parameters: 19 MiB, 2 passes, 1 lane. Django's default (100 MiB, 8 lanes) would let a few
    sign-ins at once eat the machine; at most four run at a time, the others wait their turn."""

    memory_cost = 19 * 1024
    time_cost = 2
    parallelism = 1

    def encode(self, password: str, salt: str) -> str:
        with _AT_ONCE:
            return super().encode(password, salt)

    def verify(self, password: str, encoded: str) -> bool:
        with _AT_ONCE:
            return super().verify(password, encoded)
