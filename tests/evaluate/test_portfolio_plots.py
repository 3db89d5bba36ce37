"""The test of a rising order, the monthly grid and the histogram behind the probability of overfitting."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import NotEnoughSessions
from stockpredict.evaluate.portfolio_plots import (
    logit_histogram,
    monotone_test,
    monthly_grid,
    monthly_returns,
)


def means(steps, days=300, seed=0):
    "Group means of a market in which the score groups differ by these steps."
    noise = 0.004 * np.random.default_rng(seed).normal(size=(days, len(steps) + 1))
    return noise + np.r_[0, np.cumsum(steps)]


def test_a_rise_at_every_step_is_found_and_one_fall_ends_it():
    assert monotone_test(means([0.001] * 4))["p"] < 0.01
    fall = monotone_test(means([0.003, 0.003, -0.002, 0.003]))
    assert fall["p"] == 1 and fall["rising"] == 3 and fall["smallest"] < 0


def test_a_market_without_order_is_called_rising_in_no_more_than_one_of_twenty():
    rejected = [monotone_test(means([0] * 4, seed=s), draws=200, seed=s)["p"] < 0.05 for s in range(60)]
    assert sum(rejected) <= 3


def test_overlapping_labels_widen_the_bootstrap():
    slow = np.apply_along_axis(
        lambda c: np.convolve(c, np.ones(20) / 20, "same"), 0, means([0.0004] * 4, 600)
    )
    assert monotone_test(slow, horizon=20)["p"] >= monotone_test(slow, horizon=1)["p"]


def test_too_few_complete_sessions_are_refused():
    few = means([0.001] * 2, 100)
    few[30:, 1] = np.nan
    with pytest.raises(NotEnoughSessions, match="30 sessions"):
        monotone_test(few)


def test_months_compound_and_missing_sessions_are_left_out():
    days = pd.bdate_range("2020-01-30", periods=4)
    net = pd.Series([0.1, np.nan, -0.1, 0.2], index=days)
    grid = monthly_returns(net)
    assert grid.loc[2020, 1] == pytest.approx(0.1) and grid.loc[2020, 2] == pytest.approx(0.9 * 1.2 - 1)
    assert grid.loc[2020, "year"] == pytest.approx(1.1 * 0.9 * 1.2 - 1)
    assert monthly_grid(net).axes[0].texts[0].get_text() == "10.0"


def test_the_bars_left_of_zero_are_the_probability_of_overfitting():
    logits = np.array([-1.0] * 3 + [0.0] * 2 + [2.0] * 5)
    axis = logit_histogram(logits, 0.4).axes[0]
    heights = {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in axis.patches}
    below = sum(h for x, h in heights.items() if x < -1e-6)
    assert below + heights[0.0] / 2 == pytest.approx(0.4)
    assert "40%" in axis.get_title(loc="left") or "40%" in axis.get_title()
