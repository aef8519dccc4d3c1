"""Ctrl-C, SIGTERM and a closed terminal end what runs, once: clearing up is not interrupted again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """The signals raise KeyboardInterrupt."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _on_signal(_interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` inside `interruptible`: a signal cancels the work, and KeyboardInterrupt is raised after that.

    Raised wherever the signal comes, it would be the exception of some task that nobody asks for its own.
    """
    struck = False

    async def main() -> T:
        loop = asyncio.get_running_loop()
        cancel = asyncio.current_task().cancel  # type: ignore[union-attr] # inside a task there is one

        def strike() -> None:
            nonlocal struck
            struck = True
            with suppress(RuntimeError):  # it is over by now
                loop.call_soon_threadsafe(cancel)

        _on_signal(strike)
        return await work

    try:
        result = asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if not struck:
            _on_signal(_interrupt)
    if struck:
        raise KeyboardInterrupt
    return result


def _on_signal(act: Callable[[], object]) -> None:
    """``act`` once, at the first of them."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        act()

    for number in _SIGNALS:
        signal.signal(number, handler)


def _interrupt() -> None:
    raise KeyboardInterrupt
