"""The anytime-valid comparison: false alarms over 500 looks, coverage at every look, power, and refusals."""

import numpy as np
import pytest
from stockpredict.core.errors import EvaluateError
from stockpredict.train.anytime import anytime_mean, log_wealth, relative_difference, wealth_path

DRAWS, LOOKS = 1000, 500


def draw(kind, rng):
    "Differences of equal models, as a matrix `[draw, session]`."
    if kind == "heavy":
        return np.clip(0.25 * rng.standard_t(3, (DRAWS, LOOKS)), -1, 1)
    if kind == "skewed":  # mostly small gains, seldom a large loss, zero on average
        return np.where(rng.random((DRAWS, LOOKS)) < 0.1, -0.9, 0.1)
    scale = np.where((np.arange(LOOKS) // 50) % 2, 0.6, 0.05)  # calm and wild months
    return np.clip(scale * rng.standard_normal((DRAWS, LOOKS)), -1, 1)


@pytest.mark.parametrize("kind", ["heavy", "skewed", "regimes"])
def test_equal_models_are_ever_called_different_in_at_most_one_case_in_twenty(kind):
    "500 looks; three binomial standard errors above 5 % would be 8 %."
    x = draw(kind, np.random.default_rng(5))
    for side in (x, -x):
        assert np.mean(log_wealth(side, 0.0, -1.0).max(axis=-1) > np.log(20)) <= 0.05
    assert anytime_mean(x[0]).p_greater == pytest.approx(np.exp(-max(0, log_wealth(x[0], 0.0, -1.0).max())))


def test_overlapping_labels_do_not_raise_the_false_alarms():
    "Sums of five independent moves, so that neighbours share four: the stakes are placed once in five."
    moves = 0.1 * np.random.default_rng(6).standard_normal((200, LOOKS + 4))
    overlapping = sum(moves[:, k : k + LOOKS] for k in range(5)).clip(-1, 1)
    peaks = [wealth_path(x, 0.0, -1.0, 5).max() for x in overlapping]
    assert np.mean(np.array(peaks) > np.log(20)) <= 0.05


def test_the_interval_contains_a_truth_that_moves_at_every_look():
    "The mean so far of expectations that change is what the interval has to contain, at all looks at once."
    rng, expected = np.random.default_rng(7), 0.2 * np.sin(np.arange(LOOKS) / 60)
    looks = np.arange(10, LOOKS + 1, 70)
    truth, missed = np.cumsum(expected)[looks - 1] / looks, 0
    for _ in range(40):
        x = np.clip(expected + 0.2 * rng.standard_normal(LOOKS), -1, 1)
        means = [anytime_mean(x[:n]) for n in looks]
        missed += any(not m.low <= t <= m.high for m, t in zip(means, truth, strict=True))
    assert missed <= 0.05 * 40


def test_a_better_challenger_is_recognised():
    x = np.clip(0.03 + 0.2 * np.random.default_rng(8).standard_normal((40, 750)), -1, 1)
    assert np.mean([anytime_mean(row).p_greater < 0.05 for row in x]) > 0.8


def test_wealth_does_not_grow_on_average():
    "The mean wealth of many bettors against fair differences stays at or below what they began with."
    x = np.where(np.random.default_rng(9).random((40_000, 12)) < 0.25, 0.9, -0.3)
    wealth = np.exp(log_wealth(x, 0.0, -1.0))
    assert wealth.mean(0).max() < 1 + 3 * wealth.std(0).max() / 200


def test_missing_sessions_are_left_out_and_impossible_ones_refused():
    assert anytime_mean([np.nan, 0.2, np.nan]).n == 1 and anytime_mean([]).p_greater == 1.0
    with pytest.raises(EvaluateError, match="lies outside -1 to 1"):
        anytime_mean([0.0, -1.5])


def test_relative_differences_are_bounded_and_odd():
    a, b = np.abs(np.random.default_rng(3).standard_t(2, (2, 500)))
    d = relative_difference(a, b)
    assert np.abs(d).max() <= 1 and np.array_equal(d, -relative_difference(b, a))
    assert np.isnan(relative_difference([0.0], [0.0])).all()


@pytest.mark.parametrize(
    "x, low, certain",
    [([0.0, 0.0, 0.3], 0.0, True), ([0.0, 0.0, 0.0], 0.0, False), ([0.5, 0.5, 0.6], 0.2, True)],
)
@pytest.mark.filterwarnings("error")
def test_scores_that_cannot_be_negative_refute_a_mean_of_zero_as_soon_as_one_is_positive(x, low, certain):
    p = anytime_mean(x, low, 1.0).p_greater
    assert p < 1e-9 if certain else p == 1.0
