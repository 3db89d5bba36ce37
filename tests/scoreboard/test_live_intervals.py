"""Live intervals are those of the one-series test, and exclude the truth in few simulated years."""

import numpy as np
import pytest

from stockpredict.scoreboard.live_intervals import asymptotic_interval, betting_intervals, deal_out
from stockpredict.scoreboard.null_years import count_exclusions, ever_excluded, null_year
from stockpredict.train.anytime import anytime_mean


def test_many_series_at_once_are_the_anytime_test_of_each(rng=np.random.default_rng(4)):
    series = [rng.normal(0.02, 0.1, n).clip(-1, 1) for n in (1, 7, 60, 200)] + [rng.random(90)]
    series[2][5:9] = np.nan
    bounds = [(-1.0, 1.0)] * 4 + [(0.0, 1.0)]
    ends = betting_intervals(series, bounds, [1] * 5)
    for x, (low, high), interval in zip(series, bounds, ends):
        alone = anytime_mean(x, low, high)
        assert interval == pytest.approx([alone.low, alone.high], abs=1e-7)


def test_overlapping_sessions_are_dealt_to_series_with_a_share_of_the_error(rng=np.random.default_rng(5)):
    x, overlap = rng.random(60), 6
    dealt = deal_out(x, overlap)
    alone = [anytime_mean(d, 0.0, 1.0, 0.05 / overlap) for d in dealt]
    [ends] = betting_intervals([x], [(0, 1)], [overlap])
    assert ends == pytest.approx(
        [np.mean([a.low for a in alone]), np.mean([a.high for a in alone])], abs=1e-7
    )
    wide, narrow = asymptotic_interval(x, overlap), asymptotic_interval(x, 1)
    assert wide[0] < narrow[0] < x.mean() < narrow[1] < wide[1]


@pytest.mark.parametrize("horizon, clusters", [(1, 0.1), (5, 0.2)])
def test_few_null_years_ever_exclude_the_truth(horizon, clusters):
    counted = count_exclusions(60, horizon, clusters)
    assert max(counted.counts.values()) <= 7, counted  # of 60 years 5 % are 3; 8 or more: below 1 %


def test_wrong_claims_are_excluded_within_the_year():
    rng, missed = np.random.default_rng(6), {}
    for _ in range(12):
        scores, truth = null_year(rng, 1, 0.1)
        wrong = {m: truth[m] + shift for m, shift in (("inside_90", 0.06), ("qlike", 0.4))}
        wrong |= {m: truth[m] * 0.8 for m in ("pinball", "crps")} | {"rank_ic": truth["rank_ic"] + 0.15}
        for measure, excluded in ever_excluded({m: scores[m] for m in wrong}, wrong, 2).items():
            missed[measure] = missed.get(measure, 0) + (not excluded)
    assert max(missed.values()) <= 3, missed
