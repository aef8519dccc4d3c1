"""Has anything become slower beside its floor? Exits 1 when a ratio of the last run fell below the one recorded.

    python -m bench.gate [results.json]

Ratios of one run compare what ran on the same machine at the same time; times would compare machines. The minima in
bench/gate.json are generous, because ratios scatter too: they catch a fall by a third, not one by a tenth. Each is two
thirds of the lowest that any run wrote into docs/performance.md; the workers', which is for each doubling, is that at
which eight of them send two thirds of what they did.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench import figures

MINIMA: Final = Path(__file__).with_name("gate.json")


def failures(found: Mapping[str, float], minima: Mapping[str, float]) -> list[str]:
    """What is wrong, in words. What was not measured is wrong too: a benchmark that broke off must not pass."""
    wrong = [f"{name} was not measured" for name in sorted(minima.keys() - found.keys())]
    return wrong + [
        f"{name} is {found[name]:.2f} of its floor, below {least:.2f}"
        for name, least in sorted(minima.items())
        if name in found and not found[name] >= least
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path, default=figures.RESULTS)
    parser.add_argument("--minima", type=Path, default=MINIMA)
    options = parser.parse_args(arguments)
    if not options.results.exists():
        print(f"There is no {options.results}: run `make bench` first", file=sys.stderr)
        return 1
    found, minima = figures.ratios(options.results), json.loads(options.minima.read_text())
    for name, ratio in sorted(found.items()):
        least = f", at least {minima[name]:.2f}" if name in minima else ""
        print(f"{name}: {ratio:.2f}{least}")
    wrong = failures(found, minima)
    for each in wrong:
        print(each, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
