"""The feature study: what it measures, what it refuses, how it corrects."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, spearmanr
from statsmodels.stats.multitest import multipletests

from stockpredict.core.errors import EvaluateError, NotEnoughSessions
from stockpredict.sources.simulate import simulate
from stockpredict.evaluate.feature_study import benjamini_hochberg, feature_clusters, half_life
from stockpredict.evaluate.feature_study import holm, feature_ic, own_change, persistence
from stockpredict.evaluate.feature_study import redundancy, study_features
from stockpredict.algebra.panel import Panel, scramble_future

NAMES = [
    "ret_1",
    "mom_21",
    "mom_63",
    "reversal_5",
    "vol_20",
    "rsi_14",
    "bollinger_20",
    "autocorr_20",
    "max_ret_21",
    "skew_60",
    "volume_ratio_20",
    "atr_14",
]


def market(kind, seed, tickers=40, sessions=640, **more):
    return Panel.from_bars(simulate(kind, tickers=tickers, sessions=sessions, seed=seed, **more).bars)


@pytest.fixture(scope="module")
def planted():
    return market("planted", 3, rank_ic=0.06)


@pytest.fixture(scope="module")
def result(planted):
    return study_features(planted, NAMES, until=planted.sessions[559])


@pytest.mark.parametrize("seed", range(2))
def test_the_corrections_are_those_of_statsmodels(seed):
    rng = np.random.default_rng(seed)
    p = np.r_[rng.uniform(size=30), rng.uniform(size=6) * 1e-3, 0.0, 1.0, 0.02, 0.02]
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)
    np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1], rtol=1e-12)
    holed = np.r_[np.nan, p, np.nan]
    np.testing.assert_array_equal(holm(holed)[1:-1], holm(p))
    assert (
        np.isnan(holm(holed)[[0, -1]]).all()
        and len(holm([])) == 0
        and np.isnan(benjamini_hochberg([np.nan])).all()
    )


def test_persistence_and_half_life_of_a_known_process():
    rng, rho = np.random.default_rng(1), 0.9
    x = np.zeros((1500, 60))
    for t in range(1, len(x)):
        x[t] = rho * x[t - 1] + rng.standard_normal(60)
    lasting = persistence(x[200:])
    assert lasting[1] == pytest.approx(rho, abs=0.02) and lasting[5] == pytest.approx(rho**5, abs=0.04)
    assert half_life(lasting) == pytest.approx(np.log(0.5) / np.log(rho), rel=0.15)
    assert half_life(pd.Series({1: 1.0, 63: 0.9})) == np.inf and np.isnan(half_life(pd.Series({1: np.nan})))


def test_clusters_find_copies_and_leave_strangers_apart():
    rng = np.random.default_rng(2)
    base = rng.standard_normal((4, 100, 30))
    x = np.stack([base[0], -base[0] + 0.1 * base[3], base[1], base[2]])
    ranks = np.argsort(np.argsort(x, -1), -1) - 14.5
    alike = redundancy(ranks, list("abcd"))
    assert alike.loc["a", "b"] == pytest.approx(
        np.mean([spearmanr(x[0, t], x[1, t])[0] for t in range(100)]), abs=1e-6
    )
    c = feature_clusters(alike)
    assert c.a == c.b and c.nunique() == 3 and feature_clusters(alike.iloc[:1, :1]).tolist() == [1]


def test_a_planted_signal_is_reported(result):
    row = result.table.loc[("reversal_5", 1)]
    assert row.holm < 0.05 and row.low > 0 and "significant after Holm" in row.verdict
    assert result.table.speaks_for["reversal_5", 1] in result.select("holm")
    assert result.tests == 2 * len(NAMES) and set(result.select("holm")) <= set(result.select("bh"))
    chosen = result.select()
    assert result.table.xs(1, level=1).cluster[chosen].is_unique


def test_ic_takes_names_series_and_arrays(planted):
    series = -planted.close.pct_change(5)
    want = feature_ic("reversal_5", planted)
    for other in (series, series.values.numpy()):
        assert feature_ic(other, planted).value == pytest.approx(want.value, abs=5e-3)
    with pytest.raises(EvaluateError, match="another panel"):
        feature_ic(series, planted.first(300))
    later = feature_ic("reversal_5", planted, 5)
    assert later.n < want.n and later.low < later.value < later.high


def test_nothing_after_the_training_period_is_looked_at(planted, result):
    "Scramble all that follows `until`: the study is the same, to the last digit of its verdicts."
    other = study_features(scramble_future(planted, 559), NAMES, until=planted.sessions[559])
    pd.testing.assert_frame_equal(other.table, result.table, check_exact=True)
    pd.testing.assert_frame_equal(other.alike, result.alike, check_exact=True)
    assert other.select() == result.select() and other.until == planted.sessions[559]


def test_the_training_period_must_be_named(planted):
    with pytest.raises(TypeError, match="until"):
        study_features(planted, NAMES)
    with pytest.raises(TypeError):
        study_features(planted, NAMES, (1,), planted.sessions[559])
    with pytest.raises(NotEnoughSessions):
        study_features(planted, NAMES, until=planted.sessions[40])
    with pytest.raises(EvaluateError, match="cut at"):
        study_features(planted, {"whole": np.zeros(planted.present.shape)}, until=planted.sessions[559])


def test_leaks_constants_and_holes_get_their_sentence(planted):
    cut = planted.first(400)
    coming = cut.returns.values.roll(-2, 0).numpy().copy()
    coming[-2:] = np.nan
    sparse = np.where(
        np.random.default_rng(1).random(coming.shape) < 0.3,
        np.random.default_rng(2).standard_normal(coming.shape),
        np.nan,
    )
    table = study_features(
        cut,
        {
            "tomorrow": coming,
            "constant": np.zeros(coming.shape),
            "sparse": sparse,
            "absent": np.full(coming.shape, np.nan),
        },
        (1,),
        until=cut.sessions[-1],
    ).table.droplevel(1)
    assert table.verdict["tomorrow"].startswith("Suspected leak") and table.verdict["sparse"].startswith(
        "Defined on"
    )
    assert "nothing to test" in table.verdict["constant"] or table.verdict["constant"].startswith(
        "No evidence"
    )
    assert table.verdict["absent"] == "Not defined anywhere here."
    result = study_features(cut, {"tomorrow": coming}, (1,), until=cut.sessions[-1])
    assert result.select() == [], "a leak was chosen"
    with pytest.raises(EvaluateError, match="holm or bh"):
        result.select("hope")


def test_in_a_market_without_skill_little_is_called_significant():
    "Four null markets: false discoveries within Holm's bound, single tests near their level."
    worlds = [
        study_features(p, NAMES, until=p.sessions[-1]).table
        for p in (market("null", seed, tickers=25, sessions=500) for seed in range(101, 105))
    ]
    false = sum((t.holm < 0.05).any() for t in worlds)
    assert false <= binom.ppf(0.999, len(worlds), 0.05), (
        f"{false} of {len(worlds)} null markets had a named feature"
    )
    assert sum((t.bh < 0.05).any() for t in worlds) <= binom.ppf(0.999, len(worlds), 0.05)
    p = pd.concat(worlds).p.dropna()
    assert 0.005 < (p < 0.05).mean() < 0.12, f"{(p < 0.05).mean():.1%} of single tests below 5 %"


def test_it_draws(result):
    fig = result.plot(5)
    assert fig.axes[0].get_title(loc="left").startswith("Mean rank IC, 5 sessions") and len(
        fig.axes[0].get_yticklabels()
    ) == len(NAMES)
    assert "tests significant after Holm" in repr(result)


def winners(panel: Panel, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    "Each ticker's mean return of the whole period on every session, perhaps with a little noise."
    shape = tuple(panel.present.shape)
    mean = panel.returns.frame().mean().to_numpy()
    return mean + noise * mean.std() * np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_hindsight_about_tickers_is_no_evidence(noise):
    "Significant in every market without skill; its changes within a ticker say nothing."
    significant = believed = 0
    for seed in range(6):
        panel = market("null", seed)
        row = study_features(panel, {"winners": winners(panel, noise, seed)}, (1,), until=panel.sessions[-1])
        line = row.table.loc[("winners", 1)]
        significant += line.holm < 0.05
        believed += bool(row.select()) or line.verdict.startswith(("Evidence", "Weak evidence"))
        assert line.verdict.startswith(("Tells stocks apart, not days", "No evidence", "Suspected leak"))
    assert significant >= 3 and believed == 0


def test_the_change_within_a_ticker_uses_its_past_alone(planted):
    x = planted.close.pct_change(5).values.numpy()
    whole, cut = own_change(x), own_change(x[:300])
    np.testing.assert_array_equal(whole[:300], cut)
    want = pd.DataFrame(x, dtype=float)
    want = want - want.expanding(20).mean().shift(1)
    np.testing.assert_allclose(whole, want.to_numpy(), atol=1e-6)


def test_a_planted_signal_says_the_same_within_tickers(result):
    row = result.table.loc[("reversal_5", 1)]
    assert row.tells_days and row.within > 0 and row.within_p < 0.05
