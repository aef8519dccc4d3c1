"""The dialogues are there, in the languages that we promise."""

from __future__ import annotations

import struct
import zlib

import pytest

from demo.dialogues import NoSuchDialogue, dialogue
from demo.scenes import AMONG_USERS, JOHNS, MADE_BY_ALICE, MARIAS


def test_five_languages_are_played() -> None:
    languages = {lines.language for _, _, lines in AMONG_USERS} | {MARIAS.language, JOHNS.language}
    assert languages == {"portuguese", "english", "spanish", "german", "french"}


def test_a_dialogue_is_found_by_its_opening_and_may_be_cut() -> None:
    whole = dialogue("portuguese", "Olá")
    assert whole.lines[:3] == ("Olá", "Oi", "Como vai você?")
    assert dialogue("portuguese", "Olá", at_most=2).lines == whole.lines[:2]


def test_a_dialogue_that_is_not_there_is_told() -> None:
    with pytest.raises(NoSuchDialogue, match="in english that begins with 'Olá'"):
        dialogue("english", "Olá")


@pytest.mark.parametrize("lines", [MARIAS.lines, JOHNS.lines], ids=["Maria", "John"])
def test_people_outside_say_no_line_twice(lines: tuple[str, ...]) -> None:
    """Where a platform keeps no id of ours, equal lines could not be told apart."""
    assert len(set(lines)) == len(lines)


def test_pictures_are_real() -> None:
    data = MADE_BY_ALICE.data
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    length = struct.unpack(">I", data[33:37])[0]
    assert len(zlib.decompress(data[41 : 41 + length])) == height * (1 + 3 * width)
