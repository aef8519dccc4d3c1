"""What is said of a lag."""

from __future__ import annotations

import pytest

from bench.live import growth


@pytest.mark.parametrize(
    ("lags", "expected"),
    [
        pytest.param([], "too short to see the lag grow", id="nothing seen"),
        pytest.param([20, 10, 22, 9], "largest lag 20 records in the first half, 22 in the second", id="a tenth more"),
        pytest.param(
            [98, 90, 120, 165],
            "largest lag 98 records in the first half, 165 in the second: **lag not flat**",
            id="growing",
        ),
    ],
)
def test_a_lag_that_grows_is_said_not_to_be_flat(lags: list[int], expected: str) -> None:
    assert growth(lags) == expected
