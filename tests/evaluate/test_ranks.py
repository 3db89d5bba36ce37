"""The compiled ranks of large markets against scipy, with ties, gaps, zeros of both signs and infinities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from stockpredict.evaluate import backtest, metrics, ranks, strategies

VALUES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-310, np.nan])
)


@settings(max_examples=150, deadline=None)
@given(arrays(float, (3, 17), elements=VALUES))
def test_shared_ranks_are_scipys(x):
    expected = np.array([stats.rankdata(row, nan_policy="omit") for row in x])
    np.testing.assert_array_equal(ranks.large_ranks(x), expected)


@settings(max_examples=100, deadline=None)
@given(arrays(float, (3, 17), elements=VALUES))
def test_weights_are_those_of_the_small_way(x):
    np.testing.assert_allclose(ranks.large_rank_weights(x), backtest.rank_weights(x), atol=1e-15)


def test_without_sharing_the_earlier_column_is_lower():
    x = np.random.default_rng(0).normal(size=(40, 300)).round(1)
    x[x == 0] = 0.0
    np.testing.assert_array_equal(ranks.large_ranks(x, shared=False), strategies.table_places(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_large_market_takes_the_compiled_way_and_gives_the_same(dtype, monkeypatch):
    x = np.random.default_rng(1).normal(size=(60, 400)).astype(dtype)
    x[np.random.default_rng(2).random(x.shape) < 0.05] = np.nan
    small = metrics.row_ranks(x), backtest.rank_weights(x), strategies.portfolio_weights(x, "decile")
    for module in (metrics, backtest, strategies):
        monkeypatch.setattr(module, "LARGE", 1)
    large = metrics.row_ranks(x), backtest.rank_weights(x), strategies.portfolio_weights(x, "decile")
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-15)


@settings(max_examples=100, deadline=None)
@given(arrays(float, (3, 17), elements=VALUES), st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.booleans())
def test_ends_are_those_of_the_whole_ranking(x, share, short):
    np.testing.assert_array_equal(
        ranks.large_end_weights(x, share, short), strategies.end_weights(x, share, short)
    )


def test_scores_that_differ_in_their_last_digits_only_are_ordered_exactly():
    rng = np.random.default_rng(3)
    x = 1 + 1e-13 * rng.integers(0, 500, (20, 900))
    x[:, ::7] = -x[:, ::7]
    expected = np.array([stats.rankdata(row) for row in x])
    np.testing.assert_array_equal(ranks.large_ranks(x), expected)
    np.testing.assert_array_equal(ranks.large_end_weights(x, 0.1, True), strategies.end_weights(x, 0.1, True))
