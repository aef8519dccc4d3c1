"""Real dialogues in several languages, from the data files of the package chatterbot-corpus."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

import yaml

_FEWEST_LINES: Final = 4  # below that it is a question with an answer


class NoSuchDialogue(LookupError):
    """The package has none that begins so; another version of it?"""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Lines that two people say in turn."""

    language: str
    lines: tuple[str, ...]


def dialogue(language: str, opening: str, *, at_most: int = 99) -> Dialogue:
    """The conversation in a language (the name of its folder) that begins with these words. Raises NoSuchDialogue."""
    for lines in _conversations(language):
        if lines[0] == opening and len(lines) >= _FEWEST_LINES:
            return Dialogue(language, lines[:at_most])
    raise NoSuchDialogue(f"chatterbot-corpus has no dialogue in {language} that begins with {opening!r}")


@cache
def _conversations(language: str) -> list[tuple[str, ...]]:
    path = resources.files("chatterbot_corpus") / "data" / language / "conversations.yml"
    found = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
    return [tuple(" ".join(str(line).split()) for line in lines) for lines in found]
