"""What becomes of figures: tables, the page, pictures, the file that the gate reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import figures, plots
from bench.__main__ import BENCHMARKS, Hall, measure
from bench.figures import BEGIN, END, Curve, Figure, Line, Measured, Section, Spread, Stages
from bench.scale import SHORT

API = Figure("POST", "643/s", "target 0.8", name="api", ratio=0.79)
BARE = Figure("bare", "812/s")
CURVE = Curve(
    "a.svg", "Latency <&>", "requests/s", "ms", (Line("ours", ((10, 1.5), (250, 40))), Line("bare", ((9, 1),)))
)
STAGES = Stages("b.svg", "CPU", (("a message", (("api", 2.0), ("bridge & co", 0.5))),))


def test_a_spread_is_told_in_milliseconds() -> None:
    spread = Spread.of([each / 1000 for each in range(1, 101)])
    assert (round(spread.p50, 1), round(spread.p95), round(spread.p99)) == (50.5, 95, 99)


def test_a_spread_of_one_is_that_one_and_of_none_an_error() -> None:
    assert Spread.of([0.002]) == Spread(2, 2, 2)
    with pytest.raises(ValueError, match="nothing came"):
        Spread.of([])


def test_a_table_has_a_line_for_each_figure() -> None:
    assert figures.table([API, BARE]).splitlines()[2:] == ["| POST | 643/s | target 0.8 |", "| bare | 812/s |  |"]


def test_a_section_tells_where_it_was_measured_what_it_found_and_why_it_broke_off() -> None:
    shown = figures.shown(Section("API", [API], [CURVE], about="Here."))
    assert shown.startswith("### API\n\nHere.\n\n| what |")
    assert "![Latency <&>](img/a.svg)" in shown
    assert "It broke off: TimeoutError: late" in figures.shown(Section("Loop", failure="TimeoutError: late"))


def test_what_was_measured_replaces_what_it_was_before_and_the_rest_stays() -> None:
    text = f"before\n{BEGIN}\n### Old\n\ngone\n\n### API\n\nold\n\n### Loop\n\nstays\n{END}\nafter\n"
    found = figures.put_between_markers(
        text, [Section("Growth", about="new"), Section("API", about="new")], ("API", "Growth", "Loop")
    )
    between = "### API\n\nnew\n\n### Growth\n\nnew\n\n### Loop\n\nstays"
    assert found == f"before\n{BEGIN}\n{between}\n{END}\nafter\n"
    assert figures.put_between_markers(found, [], ("API", "Growth", "Loop")) == found


def test_a_page_without_markers_is_left_alone() -> None:
    with pytest.raises(ValueError, match="has no"):
        figures.put_between_markers(f"{BEGIN} and no end", [], ())


def test_ratios_of_a_run_are_kept_for_the_gate(tmp_path: Path) -> None:
    kept = tmp_path / "results" / "bench.json"
    figures.keep([Section("API", [API, BARE], [CURVE, STAGES])], kept)
    assert figures.ratios(kept) == {"api": 0.79}


def test_a_run_that_somebody_breaks_off_keeps_what_it_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def api(_hall: Hall) -> Iterator[Measured]:
        yield API
        yield CURVE

    def loop(_hall: Hall) -> Iterator[Measured]:
        yield BARE
        raise KeyboardInterrupt

    page, results, images = tmp_path / "page.md", tmp_path / "bench.json", tmp_path / "img"
    page.write_text(f"{BEGIN}\n### Loop\n\nstays\n{END}\n")
    monkeypatch.setattr(figures, "PAGE", page)
    monkeypatch.setattr(figures, "RESULTS", results)
    monkeypatch.setattr(figures, "IMAGES", images)
    monkeypatch.setattr("bench.__main__.BENCHMARKS", {"api": ("API", api), "loop": ("Loop", loop)})
    with pytest.raises(KeyboardInterrupt):
        measure(["api", "loop"], Hall(tmp_path, SHORT), write=True)
    assert "| POST | 643/s | target 0.8 |" in page.read_text()
    assert "### Loop\n\nstays" in page.read_text()
    assert figures.ratios(results) == {"api": 0.79}
    assert [each.name for each in images.iterdir()] == [CURVE.file]


def test_our_page_has_a_place_for_figures() -> None:
    text = figures.PAGE.read_text()
    titles = [title for title, _ in BENCHMARKS.values()]
    found = figures.put_between_markers(text, [], titles)
    assert [title for title in titles if f"### {title}\n" in found] == titles


@pytest.mark.parametrize("plot", [CURVE, STAGES])
def test_a_plot_is_well_formed_and_stays_within_its_frame(plot: Curve | Stages) -> None:
    picture = ElementTree.fromstring(plots.svg(plot))
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    marks = [each for each in picture.iter() if each.tag.endswith(("circle", "rect"))]
    assert len([each for each in marks if list(each)]) == (3 if isinstance(plot, Curve) else 2)  # those with a title
    for mark in marks:
        right = float(mark.get("cx") or float(mark.get("x", 0)) + float(mark.get("width", 0)))
        assert 0 <= right <= width
        assert 0 <= float(mark.get("cy") or mark.get("y") or 0) <= height


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        pytest.param(0.0, [0.0], id="nothing"),
        pytest.param(4.0, [0, 1, 2, 3, 4], id="ones"),
        pytest.param(930.0, [0, 200, 400, 600, 800, 1000], id="hundreds"),
        pytest.param(0.033, [0, 0.01, 0.02, 0.03, 0.04], id="hundredths"),
    ],
)
def test_an_axis_has_round_numbers(highest: float, expected: list[float]) -> None:
    assert plots.ticks(highest) == pytest.approx(expected)
