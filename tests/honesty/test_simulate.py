"""The simulated markets are what they claim to be: nothing to find in the null, and exactly the planted
amount in the planted."""

import time

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import ParameterRefused
from stockpredict.sources.bars import wide
from stockpredict.sources.simulate import daily_rank_ic, draw_returns, draw_stocks, sample_bars, simulate

SEEDS = range(300, 316)


def outcome(close):
    return close.shift(-2) / close.shift(-1) - 1


def mean_ic(signal, y):
    return float(np.nanmean(daily_rank_ic(signal.to_numpy(), y.to_numpy())))


@pytest.fixture(scope="module")
def nulls():
    return [simulate("null", sessions=600, seed=s) for s in SEEDS]


@pytest.fixture(scope="module")
def planted():
    return [simulate("planted", sessions=600, rank_ic=0.05, seed=s) for s in SEEDS]


def test_daily_rank_ic_agrees_with_scipy():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 12))
    a[3, :4] = np.nan
    b[5, 2] = np.nan
    b[7] = np.nan
    for t, ic in enumerate(daily_rank_ic(a, b)):
        both = ~(np.isnan(a[t]) | np.isnan(b[t]))
        if t == 7:
            assert np.isnan(ic)
        else:
            assert ic == pytest.approx(spearmanr(a[t][both], b[t][both]).statistic)


SIGNALS = {
    "reversal of five sessions": lambda c, b: 1 - c / c.shift(5),
    "momentum of sixty": lambda c, b: c / c.shift(60) - 1,
    "yesterday": lambda c, b: c / c.shift(1) - 1,
    "volatility": lambda c, b: (c / c.shift(1) - 1).rolling(20).std(),
    "volume": lambda c, b: (v := wide(b, "volume")) / v.rolling(20).mean(),
    "place in the day's range": lambda c, b: (
        (wide(b, "close") - wide(b, "low")) / (wide(b, "high") - wide(b, "low"))
    ),
    "price level": lambda c, b: c,
}


@pytest.mark.parametrize("name", SIGNALS)
def test_no_common_signal_finds_anything_in_the_null(nulls, name):
    ics = []
    for m in nulls:
        close = wide(m.bars, "adj_close")
        ics.append(mean_ic(SIGNALS[name](close, m.bars), outcome(close)))
    assert abs(np.mean(ics)) < 3.5 * np.std(ics, ddof=1) / len(ics) ** 0.5, ics


def test_the_null_is_a_martingale_in_simple_returns_at_close_and_open():
    z = []
    for s in range(10):
        rng = np.random.default_rng(s)
        r = draw_returns(draw_stocks(60, rng), 1000, rng)

        def market_days(x):
            return (m := x.mean(1)).mean() / (
                m.std(ddof=1) / len(m) ** 0.5
            )  # t value over days, as tickers move together

        past = np.sign(np.roll(r.night + r.day, 1, 0))
        past[0] = 0
        z.append(
            [
                market_days(r.night),
                market_days(r.day),
                market_days(r.day * np.sign(r.night)),
                market_days((r.night + r.day) * past),
            ]
        )
    z = np.array(z)
    assert (np.abs(z.mean(0)) < 3.5 / len(z) ** 0.5).all() and 0.6 < z.std() < 1.5


def test_the_planted_strength_is_the_one_asked_for(nulls, planted):
    # the null market with the same seed has the same luck: taking it away leaves the strength itself, ten
    # times more precisely
    gain = [
        p.truth["realised_rank_ic"] - n.truth["realised_rank_ic"] for p, n in zip(planted, nulls, strict=True)
    ]
    assert np.mean(gain) == pytest.approx(0.05, abs=0.002)
    raw = [p.truth["realised_rank_ic"] for p in planted]
    assert abs(np.mean(raw) - 0.05) < 3.5 * np.std(raw, ddof=1) / len(raw) ** 0.5
    assert np.std(raw) < 0.012


@pytest.mark.parametrize("wanted, tickers", [(0.02, 60), (0.10, 60), (0.05, 20), (0.30, 60)])
def test_other_strengths_and_sizes(wanted, tickers):
    def result(kind, seed):
        return simulate(kind, tickers, 500, wanted, seed).truth["realised_rank_ic"]

    gain = [result("planted", s) - result("null", s) for s in range(50, 56)]
    assert np.mean(gain) == pytest.approx(wanted, rel=0.10)


def test_an_outsider_finds_the_signal_in_the_bars(planted):
    m = planted[0]
    close = wide(m.bars, "adj_close")
    own = 1 - close / close.shift(5)
    assert own.index.equals(m.signal.index) and list(own) == list(m.signal)
    assert (own.notna() == m.signal.notna()).all().all()
    assert daily_rank_ic(own.to_numpy(), m.signal.to_numpy())[5:] == pytest.approx(1)
    assert mean_ic(own, outcome(close)) == pytest.approx(m.truth["realised_rank_ic"], abs=1e-9)


def test_the_plant_is_gone_after_its_session(nulls, planted):
    late = []
    for p, n in zip(planted, nulls, strict=True):
        c, d = (wide(m.bars, "adj_close") for m in (p, n))
        late.append(
            mean_ic(p.signal, c.shift(-12) / c.shift(-11) - 1)
            - mean_ic(n.signal, d.shift(-12) / d.shift(-11) - 1)
        )
    assert abs(np.mean(late)) < 0.006


@pytest.mark.parametrize("kind", ["null", "planted", "realistic"])
def test_bars_are_plausible(kind):
    m = simulate(kind, sessions=400, seed=9)
    b = m.bars
    cal = get_calendar()
    assert not b.duplicated(["ticker", "event_time"]).any() and b.notna().all().all()
    assert (b.low <= b[["open", "close"]].min(axis=1) * (1 + 1e-12)).all() and (
        b.high >= b[["open", "close"]].max(axis=1) * (1 - 1e-12)
    ).all()
    assert (b[["open", "high", "low", "close", "adj_close"]] > 0).all().all() and (b.volume >= 0).all()
    assert (cal.closes(cal.session_of(b.event_time)) == pd.DatetimeIndex(b.event_time)).all() and (
        b.known_at > b.event_time
    ).all()
    assert b[["ticker", "event_time"]].equals(
        b[["ticker", "event_time"]].sort_values(["ticker", "event_time"], ignore_index=True)
    )
    counts = b.groupby("ticker").size()
    assert (counts < 390).sum() >= 6 and counts.max() > 395 and len(counts) == 60


def test_returns_look_like_returns(nulls):
    r = np.concatenate([wide(m.bars, "adj_close").pct_change(fill_method=None).to_numpy() for m in nulls[:4]])
    x = r[~np.isnan(r)]
    assert ((x - x.mean()) ** 4).mean() / x.var() ** 2 > 5 and 0.01 < x.std() < 0.04
    both = ~np.isnan(r[1:]) & ~np.isnan(r[:-1])
    a, b = r[1:][both], r[:-1][both]
    assert np.corrcoef(abs(a), abs(b))[0, 1] > 0.1 and abs(np.corrcoef(a, b)[0, 1]) < 0.03
    corr = pd.DataFrame(r).corr().to_numpy()[np.triu_indices(60, 1)]
    assert 0.1 < corr.mean() < 0.5


def test_falls_shake_a_realistic_market_more():
    def lean(kind):
        out = []
        for s in range(4):
            m = wide(simulate(kind, sessions=1000, seed=s).bars, "adj_close").pct_change(fill_method=None)
            out.append(np.nanmean([np.corrcoef(m[c].dropna()[:-1], m[c].dropna()[1:] ** 2)[0, 1] for c in m]))
        return np.mean(out)

    assert (
        lean("realistic") < lean("null") - 0.02
    )  # sizes follow falls; in the null market they follow both alike


def test_a_split_is_a_cliff_in_prices_and_none_in_adjusted_ones():
    m = simulate("realistic", sessions=500, seed=3)
    assert len(m.truth["splits"]) == 6 and len(simulate("null", sessions=100).truth["splits"]) == 1
    raw, adjusted, volume = wide(m.bars), wide(m.bars, "adj_close"), wide(m.bars, "volume")
    for s in m.truth["splits"]:
        i = raw.index.get_loc(pd.Timestamp(s["session"]))
        t = s["ticker"]
        before, after = raw[t].iloc[i - 1], raw[t].iloc[i]
        assert after / before * s["ratio"] == pytest.approx(adjusted[t].iloc[i] / adjusted[t].iloc[i - 1])
        assert np.allclose((raw[t].iloc[:i] / adjusted[t].iloc[:i]).dropna(), s["ratio"])
        assert (raw[t].iloc[i:] == adjusted[t].iloc[i:])[raw[t].iloc[i:].notna()].all()
        assert np.log(
            volume[t].iloc[i : i + 60].median() / volume[t].iloc[i - 60 : i].median() / s["ratio"]
        ) == pytest.approx(0, abs=1)


def test_publication_lags():
    assert set(simulate("null", 10, 50).bars.eval("known_at - event_time")) == {pd.Timedelta("15min")}
    late = simulate("realistic", 40, 200).bars.eval("known_at - event_time")
    assert 0.05 < (late > pd.Timedelta("1h")).mean() < 0.15 and late.max() < pd.Timedelta("15h")


def test_same_seed_same_market_to_the_last_bit():
    a, b = simulate("planted", 12, 200, seed=5), simulate("planted", 12, 200, seed=5)
    assert a.bars.equals(b.bars) and a.truth == b.truth and a.signal.equals(b.signal)
    assert not a.bars.close.equals(simulate("planted", 12, 200, seed=6).bars.close)
    assert sample_bars().equals(sample_bars())


def test_a_longer_history_is_not_needed_to_know_the_signal():
    m = simulate("planted", 15, 120, seed=8)
    close = wide(m.bars, "adj_close")
    cut = close.iloc[:60]
    assert (1 - cut / cut.shift(5)).iloc[-1].equals((1 - close / close.shift(5)).iloc[59])


@pytest.mark.parametrize(
    "wish",
    [
        dict(kind="magic"),
        dict(tickers=0),
        dict(kind="planted", tickers=4),
        dict(sessions=9),
        dict(rank_ic=0.9),
        dict(rank_ic=-0.1),
        dict(rank_ic=float("nan")),
    ],
)
def test_wrong_wishes_are_refused(wish):
    with pytest.raises(ParameterRefused):
        simulate(**wish)


def test_small_and_short_markets_work():
    for kind, n in (("null", 1), ("null", 2), ("planted", 5), ("realistic", 1)):
        m = simulate(kind, n, 10)
        assert 0 < len(m.bars) <= 10 * n and m.truth["kind"] == kind
    assert len(sample_bars(1, 20)) == 20 and sample_bars(7, 60).ticker.nunique() == 7


def test_making_one_is_quick():
    get_calendar()
    before = time.process_time()
    simulate("planted")
    assert time.process_time() - before < 2
