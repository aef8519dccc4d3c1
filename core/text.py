"""Text from outside, made fit to be stored."""

from __future__ import annotations


def storable(text: str) -> str:
    """The same text with U+FFFD for what some database or encoder refuses: NUL, and surrogates without a partner."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
