"""A pytest plugin: what is logged, as it would go to stderr."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.logging import JsonLines, _Context

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Everything since the test began."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(_Context("test"))
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.removeHandler(handler)
