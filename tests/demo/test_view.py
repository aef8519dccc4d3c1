"""What a person sees while it plays, on terminals of several widths and where there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from demo.journal import ACCEPTED, DELIVERED, FAILED, READ, SENT, Journal, Life, now_ms
from demo.reckoning import Loss, Reckoning
from demo.summary import Row, Summary, percentile
from demo.view import LiveView, PlainView, view_for

ALICE, MARIA = "user_a", "whatsapp:+5511987654321"
NAMES = {ALICE: "Alice", MARIA: "Maria"}


def life(message_id: str = "m1") -> Life:
    return Life(message_id, "c", ALICE, MARIA, "Olá Maria, tudo bem com você?", False, begun_ms=now_ms())


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=30)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def summary(reckoning: Reckoning, *broken_off: str) -> Summary:
    row = Row("whatsapp", accepted=7, stored=7, at_platform=6, delivered=5, read=4, replies_in=3, files=1)
    return Summary([row], 108, {"POST → 202": [1.0, 2.0, 3.0]}, reckoning, broken_off)


def one_lost() -> Reckoning:
    reckoning = Reckoning()
    reckoning.losses[Loss.NOT_AT_PLATFORM].add("m1")
    return reckoning


@pytest.mark.parametrize("width", [80, 120])
def test_a_finished_message_stays_with_its_text_and_all_its_ticks(width: int) -> None:
    console, journal = terminal(width), Journal()
    with LiveView(console).playing(journal, NAMES):
        journal.begin(life())
        for status in (SENT, DELIVERED, READ):
            journal.see("m1", status)
    line = next(line for line in shown(console).splitlines() if "Maria" in line and line.count("✓✓") == 2)
    assert "Alice → Maria" in line
    assert "Olá Maria" in line
    assert line.count("✓") == 6
    assert max(map(len, line.split("\r"))) <= width + 40  # with what moves the cursor


def test_a_failed_message_tells_its_reason() -> None:
    console, journal = terminal(120), Journal()
    with LiveView(console).playing(journal, NAMES):
        journal.begin(life())
        journal.see("m1", FAILED, reason="platform:131026")
    assert "✗ FAILED" in shown(console)
    assert "platform:131026" in shown(console)


def test_without_a_terminal_each_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    view, journal = view_for(Console(file=io.StringIO())), Journal()
    assert isinstance(view, PlainView)
    with view.playing(journal, NAMES):
        journal.begin(life())
        journal.see("m1", SENT)
        journal.see("m1", SENT)
        journal.see("m1", READ)
    lines = capsys.readouterr().out.splitlines()
    assert [next(word for word in line.split() if word in (ACCEPTED, SENT, READ)) for line in lines] == [
        ACCEPTED, SENT, READ,
    ]  # fmt: skip
    assert all("WhatsApp" in line and "Alice → Maria" in line and "Olá Maria" in line for line in lines)


def test_a_frame_that_overtakes_its_202_is_shown_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal()
    with PlainView().playing(journal, NAMES):
        journal.see("m1", SENT)
        assert capsys.readouterr().out == ""
        journal.begin(life())
    first, second = capsys.readouterr().out.splitlines()
    assert (ACCEPTED in first, SENT in second) == (True, True)


@pytest.mark.parametrize("live", [True, False], ids=["on a terminal", "plain"])
def test_the_summary_says_what_is_wrong(live: bool, capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal(120)
    view = LiveView(console) if live else PlainView()
    view.summary(summary(one_lost(), "nobody answered"), limit_s=30)
    text = shown(console) if live else capsys.readouterr().out
    for part in ("lost: 1", "twice: 0", "scenes broken off: 1", "1 missing at the platform", "nobody answered", "108"):
        assert part in text


def test_flawless_is_what_lost_nothing_and_was_played_to_its_end() -> None:
    assert summary(Reckoning()).flawless
    assert not summary(Reckoning(), "nobody answered").flawless
    assert not summary(one_lost()).flawless


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([7.0], 99, 7.0), ([3.0, 1.0, 2.0], 50, 2.0), ([float(n) for n in range(1, 101)], 99, 99.0)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], percent: int, expected: float | None) -> None:
    assert percentile(values, percent) == expected
