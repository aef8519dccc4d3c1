"""argon2id with bounded memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from django.contrib.auth.hashers import Argon2PasswordHasher

AT_ONCE: Final = 4
_pool = ThreadPoolExecutor(AT_ONCE, "argon2")


def _forked() -> None:
    global _pool  # noqa: PLW0603 - the parent's threads are not ours
    _pool = ThreadPoolExecutor(AT_ONCE, "argon2")


os.register_at_fork(after_in_child=_forked)


class Argon2id(Argon2PasswordHasher):
    """OWASP's parameters: 19 MiB, 2 passes, 1 lane. Django's default (100 MiB, 8 lanes) would let a few
    sign-ins at once eat the machine; at most four run at a time, the others wait their turn.

    On threads of their own: glibc keeps those 19 MiB for the thread that freed them, and each of an API's 32 would come
    to have some.
    """

    memory_cost = 19 * 1024
    time_cost = 2
    parallelism = 1

    def encode(self, password: str, salt: str) -> str:
        return _pool.submit(super().encode, password, salt).result()

    def verify(self, password: str, encoded: str) -> bool:
        return _pool.submit(super().verify, password, encoded).result()
