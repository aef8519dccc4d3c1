"""Where passwords are hashed: on few threads, whoever asks, as each keeps the memory that it took."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.hashers import Argon2PasswordHasher

from accounts.hashers import AT_ONCE, Argon2id
from tests.forks import a_child_can

SALT = "saltsaltsaltsalt"


def test_whoever_asks_it_is_done_by_the_same_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()

    def encode(self: Argon2PasswordHasher, password: str, salt: str) -> Any:
        seen.add(threading.get_ident())
        return hashed(self, password, salt)

    hashed = Argon2PasswordHasher.encode
    monkeypatch.setattr(Argon2PasswordHasher, "encode", encode)
    asking = threading.Barrier(4 * AT_ONCE)

    def ask(_: int) -> tuple[int, bool]:
        asking.wait(30)
        encoded = Argon2id().encode("correct horse", SALT)
        return threading.get_ident(), Argon2id().verify("correct horse", encoded)

    with ThreadPoolExecutor(4 * AT_ONCE) as pool:
        asked = list(pool.map(ask, range(4 * AT_ONCE)))
    assert all(right for _, right in asked)
    assert 1 <= len(seen) <= AT_ONCE
    assert not seen & {who for who, _ in asked}


def test_a_forked_child_hashes_on_threads_of_its_own() -> None:
    encoded = Argon2id().encode("correct horse", SALT)

    def look() -> None:
        assert Argon2id().verify("correct horse", encoded)
        assert not Argon2id().verify("wrong horse", encoded)

    a_child_can(look)
