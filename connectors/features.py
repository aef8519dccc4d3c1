"""What each channel can do, as the table in docs/channels.md: ``python -m connectors.features`` prints it."""

from __future__ import annotations

from connectors import registry
from connectors.base import Connector

_HEADER = ("Channel", "Text", "Text with a file", "Largest file", "Delivered", "Read", "Sent again when unsure")


def matrix() -> str:
    """A Markdown table, one line for each channel."""
    rows = [_HEADER, tuple("---" for _ in _HEADER), *(_row(registry.get(name)) for name in registry.channels())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(connector: Connector) -> tuple[str, ...]:
    can = connector.capabilities
    limits = ((can.max_text_chars, "characters"), (can.max_text_bytes, "bytes"))
    text = ", ".join(f"{limit} {unit}" for limit, unit in limits if limit is not None) or "any"
    caption = "as text" if can.max_caption_chars is None else f"{can.max_caption_chars} characters"
    file = "none" if can.max_media_bytes is None else f"{can.max_media_bytes // 1024**2} MiB"
    flags = (can.delivery_receipts, can.read_receipts, can.resend_ambiguous)
    return (connector.name, text, caption, file, *("yes" if flag else "no" for flag in flags))


if __name__ == "__main__":
    print(matrix())
