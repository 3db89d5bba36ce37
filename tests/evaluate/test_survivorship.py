"""The survivorship band against a simulated universe of which only the survivors are kept."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import EvaluateError
from stockpredict.evaluate.survivorship import DelistingRates, SurvivorshipBand, missing_share
from stockpredict.evaluate.survivorship import survivorship_band, universe_band


def simulated(years, rates, seed, names=60_000):
    "Yearly returns of a universe with leavers, `[year, name]`, NaN after the last year; and who is left."
    rng = np.random.default_rng(seed)
    leave, failed, loss, drift, premium = (getattr(rates, k)[1] for k in vars(rates))
    r = 0.08 + 0.3 * rng.normal(size=(years, names))
    alive = np.ones(names, bool)
    for t in range(years):
        r[t, ~alive] = np.nan
        out = alive & (rng.random(names) < leave)
        fails = out & (rng.random(names) < failed)
        r[t, fails] -= loss + drift
        r[t, out & ~fails] += premium
        alive &= ~out
    return r, alive


@pytest.mark.parametrize("years, leave", [(3, 0.05), (8, 0.10)])
def test_the_middle_of_the_band_is_the_bias_of_a_simulated_list(years, leave):
    rates = DelistingRates(leave=(leave / 2, leave, 2 * leave))
    r, alive = simulated(years, rates, seed=years)
    complete, listed = np.nanmean(r, 1).mean(), r[:, alive].mean()
    band = survivorship_band(years, rates=rates)
    assert listed - complete == pytest.approx(band.bias[1], abs=0.002)
    assert band.bias[0] < listed - complete < band.bias[2]
    assert 1 - alive.mean() == pytest.approx(band.died[1], abs=0.005)
    low, _, high = band.apply(listed)
    assert low < complete < high


def test_the_missing_share_is_counted():
    "Rows of names that are not on the list, over a fine grid of time; the list is made two years later."
    rng = np.random.default_rng(1)
    ends = rng.exponential(1 / -np.log(1 - 0.08), 200_000)
    years, age = 6.0, 2.0
    time = np.linspace(0, years, 200)
    share = []
    for t in time:  # names listed at t, new ones replace leavers: residual lives are exponential again
        share.append((ends < years + age - t).mean())
    assert missing_share(years, 0.08, age) == pytest.approx(np.mean(share), abs=0.004)


def test_complete_data_and_neutral_portfolios_have_no_bias():
    assert survivorship_band(5, kept=1).bias == (0, 0, 0) and survivorship_band(5, kept=1).died == (0, 0, 0)
    assert survivorship_band(5, tilt=0).bias == (0, 0, 0)
    half, none = survivorship_band(5, kept=0.5), survivorship_band(5)
    np.testing.assert_allclose(np.array(none.bias) / 2, half.bias)
    assert isinstance(none, SurvivorshipBand) and "expected to have left" in repr(none)
    losers = survivorship_band(5, tilt=3)
    assert losers.bias[1] == pytest.approx(3 * none.bias[1])


def test_a_table_of_bars_tells_how_many_of_the_dead_it_has():
    days = pd.bdate_range("2010-01-04", periods=2520)
    rng = np.random.default_rng(2)
    last = np.minimum(rng.exponential(2520 / 10 / -np.log(1 - 0.08), 400).astype(int) + 60, 2519)

    def bars(keep):
        rows = [
            dict(ticker=f"N{k}", session=days[at])
            for k, n in enumerate(last)
            if keep(n)
            for at in (0, int(n))
        ]
        return pd.DataFrame(rows)

    complete, survivors = universe_band(bars(lambda n: True)), universe_band(bars(lambda n: n == 2519))
    assert complete.years == pytest.approx(9.65, abs=0.05)
    assert survivors.bias == survivorship_band(survivors.years).bias
    assert abs(complete.bias[1]) < 0.2 * survivors.bias[1]


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: survivorship_band(0), "positive length"),
        (lambda: survivorship_band(5, kept=1.5), "between 0 and 1"),
        (lambda: DelistingRates(failed=(0.5, 0.4, 0.6)), "increasing"),
        (lambda: DelistingRates(leave=(0.1, 0.2)), "low, middle, high"),
        (lambda: universe_band(pd.DataFrame({"ticker": ["A"], "session": ["2020-01-02"]})), "no age"),
    ],
)
def test_what_has_no_band_is_refused(call, word):
    with pytest.raises(EvaluateError, match=word):
        call()
