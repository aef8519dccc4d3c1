"""Who found a part away has the others leave it alone for a while."""

from __future__ import annotations

from core.clock import ManualClock
from core.rest import Rest


def test_it_lasts_from_when_it_was_begun_last_until_it_is_over_or_ended() -> None:
    clock = ManualClock()
    rest = Rest(2, clock)
    seen = [rest.is_on]
    rest.begin()
    for wait_s in (1.5, 0.5):
        clock.advance(wait_s)
        seen.append(rest.is_on)
    rest.begin()
    seen.append(rest.is_on)
    rest.end()
    seen.append(rest.is_on)
    assert seen == [False, True, False, True, False]
