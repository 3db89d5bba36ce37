"""Short bars: each field equals a plain loop over one session's bars, and no bar that was not yet known
reaches a decision."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import BarsInvalid
from stockpredict.core.settings import Settings
from stockpredict.ingest.intraday import add_intraday, load_intraday
from stockpredict.lake.lake import Lake
from stockpredict.sources.intraday_simulation import bar_ends
from stockpredict.catalogue.feature import Feature, FEATURES, prove, feature_values
from stockpredict.catalogue.point_in_time import attach_fields, decision_times, with_facts
from stockpredict.features.intraday import intraday_fields, value_area
from stockpredict.algebra.panel import Panel

NYSE = get_calendar()
DAYS = NYSE.sessions("2023-11-13", "2023-12-05")  # Thanksgiving, and the half day after it
TICKERS = ["A", "B", "C"]
MINUTE = pd.Timedelta("1min")


def short_bars(seed=1, every="5min") -> pd.DataFrame:
    """A random walk in short bars, known five seconds after they end; some are missing, some came late,
    some were corrected."""
    rng, at = np.random.default_rng(seed), bar_ends(NYSE, DAYS, every)
    parts = []
    for t in TICKERS:
        close = 50 * np.exp(np.cumsum(0.001 * rng.standard_t(4, len(at))))
        open_ = np.r_[50.0, close[:-1]] * np.exp(0.0002 * rng.standard_normal(len(at)))
        high, low = np.maximum(open_, close) * 1.0004, np.minimum(open_, close) * 0.9996
        volume = rng.integers(0, 9000, len(at)).astype(float)
        parts.append(
            pd.DataFrame(
                dict(
                    ticker=t,
                    event_time=at,
                    known_at=at + pd.Timedelta("5s"),
                    open=open_,
                    high=high,
                    low=low,
                    close=close,
                    volume=volume,
                )
            )
        )
    bars = pd.concat(parts, ignore_index=True)
    late = rng.random(len(bars)) < 0.03
    bars.loc[late, "known_at"] += pd.Timedelta("20h")
    fixed = bars[rng.random(len(bars)) < 0.03].assign(
        close=lambda b: b.close * 1.001,
        known_at=lambda b: b.known_at + rng.choice([2, 2000], len(b)) * MINUTE,
    )
    bars = pd.concat([bars[rng.random(len(bars)) > 0.05], fixed], ignore_index=True)
    return bars[~((bars.ticker == "B") & (NYSE.session_of(bars.event_time) == DAYS[3]))].sample(
        frac=1.0, random_state=seed
    )


def panel_of(days=DAYS, tickers=TICKERS) -> Panel:
    return Panel({"close": torch.full((len(days), len(tickers)), 50.0)}, days, tickers)


def by_hand(bars: pd.DataFrame, day, ticker, at) -> dict | None:
    "The fields of one session by one loop."
    opened, closed = NYSE._opens[NYSE._at([day])[0]], NYSE.close(day)
    b = bars[
        (bars.ticker == ticker)
        & (bars.event_time > opened)
        & (bars.event_time <= closed)
        & (bars.known_at <= at)
        & (bars.event_time <= at)
    ]
    b = b.sort_values(["event_time", "known_at"]).groupby("event_time").last().reset_index()
    if len(b) < 10:
        return None
    r = np.array([math.log(c / (b.close[i - 1] if i else b.open[0])) for i, c in enumerate(b.close)])
    over = ((b.event_time - opened) / (closed - opened)).to_numpy()
    first = over <= 1 / 13 + 1e-9
    last = over > 12 / 13 + 1e-9
    typical = ((b.high + b.low + b.close) / 3).to_numpy()
    total, n = b.volume.sum(), len(b)
    heap, edges = np.histogram(typical, 24, weights=b.volume)
    best = low = high = int(heap.argmax())
    while heap[low : high + 1].sum() < 0.7 * total - 1e-9 * total:
        under, above = heap[low - 1] if low else -1, heap[high + 1] if high < 23 else -1
        low, high = (low, high + 1) if above >= under else (low - 1, high)
    top, bottom = b.high[first].max(), b.low[first].min()
    return dict(
        intra_variance=(r**2).sum(),
        intra_up=(r[r > 0] ** 2).sum(),
        intra_down=(r[r < 0] ** 2).sum(),
        intra_bipower=math.pi / 2 * n / (n - 1) * sum(abs(a * b) for a, b in zip(r[1:], r[:-1])),
        intra_skew=n**0.5 * (r**3).sum() / (r**2).sum() ** 1.5,
        intra_kurt=n * (r**4).sum() / (r**2).sum() ** 2,
        intra_first=b.close[first].iloc[-1] / b.open[0] - 1 if first.any() else math.nan,
        intra_last=b.close.iloc[-1] / b.close[~last].iloc[-1] - 1 if last.any() else math.nan,
        intra_open_volume=b.volume[first].sum() / total if first.any() else math.nan,
        intra_close_volume=b.volume[last].sum() / total if last.any() else math.nan,
        intra_open_range=(top - bottom) / b.open[0],
        intra_breakout=(b.close.iloc[-1] - (top + bottom) / 2) / (top - bottom),
        intra_vwap=(typical * b.volume).sum() / total,
        intra_flow=(np.sign(r) * b.volume).sum() / total,
        intra_close=b.close.iloc[-1],
        intra_control=(edges[best] + edges[best + 1]) / 2,
        intra_value_low=edges[low],
        intra_value_high=edges[high + 1],
    )


@pytest.mark.parametrize("later", ["1min", "-1h", "30h"])
def test_every_field_equals_a_loop_over_the_session(later):
    "At the close, an hour before it, and so late that corrections have arrived."
    bars, panel = short_bars(), panel_of()
    at = decision_times(panel, NYSE) + pd.Timedelta(later)
    got = intraday_fields(bars, panel, NYSE, at)
    empty = 0
    for i, day in enumerate(DAYS):
        for j, ticker in enumerate(TICKERS):
            want = by_hand(bars, day, ticker, at[i])
            empty += want is None
            for k in got:
                np.testing.assert_allclose(
                    got[k][i, j],
                    math.nan if want is None else want[k],
                    rtol=1e-9,
                    atol=1e-12,
                    err_msg=f"{k} {day} {ticker}",
                )
    assert set(got) == set(want) and empty == 1


def test_bars_known_after_the_decision_change_nothing():
    "Scrambled, cut off or multiplied: what was not known at a decision does not reach its row."
    bars, panel = short_bars(), panel_of()
    at = decision_times(panel, NYSE)
    whole, rng = intraday_fields(bars, panel, NYSE, at), np.random.default_rng(3)
    for i in range(len(DAYS)):
        hidden = (bars.known_at > at[i]).to_numpy()
        other = bars.copy()
        other.loc[hidden, ["open", "high", "low", "close", "volume"]] *= rng.uniform(
            0.2, 5.0, (hidden.sum(), 5)
        )
        for variant in (
            bars[~hidden],
            other,
            pd.concat([bars, other[hidden].assign(known_at=lambda b: b.known_at + MINUTE)]),
        ):
            again = intraday_fields(variant, panel, NYSE, at)
            for k in whole:
                np.testing.assert_array_equal(again[k][: i + 1], whole[k][: i + 1], err_msg=f"{k}, row {i}")


def test_at_the_very_close_the_last_bar_is_not_known_yet():
    bars = short_bars()
    bars["known_at"] = bars.event_time + pd.Timedelta("5s")
    panel = panel_of()
    strict = intraday_fields(bars, panel, NYSE)
    patient = intraday_fields(bars, panel, NYSE, decision_times(panel, NYSE) + MINUTE)
    assert not np.array_equal(strict["intra_close"], patient["intra_close"], equal_nan=True)
    punctual = intraday_fields(bars.assign(known_at=bars.event_time), panel, NYSE)
    for k in punctual:
        np.testing.assert_array_equal(punctual[k], patient[k])


def test_order_neighbours_and_bars_outside_the_session_do_not_matter():
    bars, panel = short_bars(), panel_of()
    at = decision_times(panel, NYSE) + MINUTE
    whole = intraday_fields(bars, panel, NYSE, at)
    before = bars.assign(
        event_time=bars.event_time - pd.Timedelta("8h"),
        known_at=bars.known_at - pd.Timedelta("8h"),
        close=1e6,
    )
    before = before[before.event_time.dt.tz_convert("America/New_York").dt.hour < 9]
    more = intraday_fields(pd.concat([before, bars.assign(ticker="Z"), bars.iloc[::-1]]), panel, NYSE, at)
    for k in whole:
        np.testing.assert_array_equal(more[k], whole[k])
    turned = intraday_fields(bars, panel_of(tickers=TICKERS[::-1]), NYSE, at)
    for k in whole:
        np.testing.assert_array_equal(turned[k][:, ::-1], whole[k])
    part = intraday_fields(bars, panel_of(DAYS[5:9]), NYSE, at[5:9])
    for k in whole:
        np.testing.assert_array_equal(part[k], whole[k][5:9])


def test_a_half_day_is_measured_by_its_own_hours():
    bars, half = short_bars(), pd.Timestamp("2023-11-24")
    got = intraday_fields(
        bars, panel_of(pd.DatetimeIndex([half])), NYSE, pd.DatetimeIndex([NYSE.close(half) + MINUTE])
    )
    assert (
        NYSE.close(half).hour == 18
        and np.isfinite(got["intra_last"]).all()
        and (got["intra_close_volume"] < 0.3).all()
    )


@pytest.mark.parametrize(
    "bars",
    [
        short_bars()[:0],
        short_bars().assign(close=math.nan),
        short_bars().assign(ticker="?"),
        short_bars()[:5],
    ],
)
def test_without_usable_bars_there_is_no_number(bars):
    got = intraday_fields(bars, panel_of(), NYSE)
    assert len(got) == 18 and all(np.isnan(x).all() and x.shape == (len(DAYS), 3) for x in got.values())


def test_flat_prices_and_no_volume_are_defined_or_empty_never_infinite():
    flat = short_bars().assign(open=50.0, high=50.0, low=50.0, close=50.0, volume=0.0)
    got = intraday_fields(flat, panel_of(), NYSE, decision_times(panel_of(), NYSE) + MINUTE)
    assert not any(np.isinf(x).any() for x in got.values())
    assert (
        np.nanmax(got["intra_variance"]) == 0
        and np.isnan(got["intra_vwap"]).all()
        and np.isnan(got["intra_control"]).all()
    )
    full = attach_fields(panel_of(), got)
    for name in MINE:
        assert not feature_values(FEATURES[name], full).isinf().any()


def test_a_column_that_is_missing_is_named():
    with pytest.raises(BarsInvalid, match="volume"):
        intraday_fields(short_bars().drop(columns="volume"), panel_of(), NYSE)


def test_the_value_area_contains_its_share_of_the_volume():
    heap = np.random.default_rng(5).integers(0, 50, (200, 24)).astype(float)
    best, low, high = value_area(heap)
    for h, b, a, z in zip(heap, best, low, high):
        assert a <= b <= z and h[b] == h.max() and h[a : z + 1].sum() >= 0.7 * h.sum() - 1e-6
        assert a == z or min(h[a + 1 : z + 1].sum(), h[a:z].sum()) < 0.7 * h.sum()


MINE = [n for n, f in FEATURES.items() if f.func.__module__.endswith(".intraday")]


def test_features_on_fields_equal_pandas():
    days, rng = NYSE.sessions("2023-01-03", "2023-06-30"), np.random.default_rng(8)
    got = {
        k: pd.DataFrame(np.exp(0.2 * rng.standard_normal((len(days), 3))))
        for k in intraday_fields(short_bars()[:0], panel_of(), NYSE)
    }
    got["intra_value_high"] += 1 + got["intra_value_low"]
    got["intra_bipower"] *= 0.9
    full = attach_fields(
        Panel({"close": torch.tensor(got["intra_close"].to_numpy()).float()}, days, TICKERS),
        {k: x.to_numpy() for k, x in got.items()},
    )

    def f(k, n=1):
        return got["intra_" + k].rolling(n).mean()

    middle = (got["intra_value_low"] + got["intra_value_high"]) / 2
    wide = got["intra_value_high"] - got["intra_value_low"]
    want = dict(
        intra_vol_5=f("variance", 5) ** 0.5,
        intra_vol_change_1_22=np.log(f("variance") / f("variance", 22)),
        intra_signed_variation_5=(f("up", 5) - f("down", 5)) / f("variance", 5),
        intra_jump_share_1=(1 - f("bipower") / f("variance")).clip(lower=0),
        realised_skew_5=f("skew", 5),
        realised_kurt_5=f("kurt", 5),
        intra_share_22=np.log(f("variance", 22) / (got["intra_close"].pct_change() ** 2).rolling(22).mean()),
        first_half_hour_5=f("first", 5) / f("variance", 5) ** 0.5,
        last_half_hour_1=f("last") / f("variance") ** 0.5,
        opening_breakout_5=f("breakout").clip(-10, 10).rolling(5).mean(),
        opening_range_20=np.log(f("open_range") / f("open_range", 20)),
        open_volume_1=f("open_volume"),
        close_volume_1=f("close_volume"),
        intra_imbalance_5=f("flow", 5),
        close_to_vwap_5=np.log(f("close") / f("vwap")).rolling(5).mean() / f("variance", 5) ** 0.5,
        close_to_control_1=np.log(f("close") / f("control")) / f("variance") ** 0.5,
        value_place_1=((f("close") - middle) / wide).clip(-5, 5),
        value_shift_5=np.log(middle / middle.shift(5)) / (f("variance", 5) * 5) ** 0.5,
        value_width_20=np.log(wide / wide.rolling(20).mean()),
    )
    assert {FEATURES[n].func for n in MINE} == {FEATURES[n].func for n in want}
    for name, x in want.items():
        ours = feature_values(FEATURES[name], full).numpy()
        assert np.isfinite(ours).any(), name
        np.testing.assert_allclose(ours, x.to_numpy(), rtol=2e-3, atol=2e-4, err_msg=name)


def test_features_pass_the_leak_check_and_are_empty_without_fields():
    for name in MINE:
        assert prove(FEATURES[name]).proven
        assert feature_values(FEATURES[name], panel_of()).isnan().all()


def test_a_field_that_looks_one_session_ahead_is_caught():
    from stockpredict.core.errors import SeesFuture
    from stockpredict.catalogue.point_in_time import fact_series

    def peek(b):
        return type(b.close)(
            fact_series(b, "intra_variance").values.roll(-1, 0), b.grid, fields={"close", "intra_variance"}
        )

    with pytest.raises(SeesFuture):
        prove(Feature(peek, group="mutant"))


def test_real_short_bars_agree_with_the_daily_moves(shared):
    """Four American stocks in five-minute bars: their realised volatility is near that of their daily
    returns, and half days are complete."""
    raw = pd.read_parquet(
        shared / "intraday_5m_us.parquet",
        columns=["ticker", "timestamp", "open", "high", "low", "close", "volume"],
    )
    start = pd.to_datetime(raw.timestamp, utc=True, format="ISO8601")
    bars = raw.assign(event_time=start + 5 * MINUTE, known_at=start + 5 * MINUTE)[
        (start >= "2024-06-01") & (start < "2025-06-01")
    ]
    days = NYSE.sessions("2024-06-03", "2025-05-30")
    panel = panel_of(days, ["AAPL", "MSFT", "SPY"])
    got = intraday_fields(bars, panel, NYSE)
    assert np.isfinite(got["intra_variance"]).mean() > 0.98
    daily = np.diff(np.log(got["intra_close"]), axis=0)
    ratio = np.sqrt(np.nanmean(got["intra_variance"], 0)) / np.nanstd(daily, axis=0)
    assert ((ratio > 0.55) & (ratio < 1.25)).all(), (
        f"the night is missing from a session's variance, little else: {ratio}"
    )
    assert (
        np.nanmedian(got["intra_open_volume"]) > 1 / 13
        and (got["intra_value_low"] <= got["intra_control"]).sum() == np.isfinite(got["intra_control"]).sum()
    )
    half = days.get_loc(pd.Timestamp("2024-11-29"))
    assert np.isfinite(got["intra_last"][half]).all()


def test_the_lake_gives_the_fields_that_training_and_serving_attach(tmp_path):
    "Stored, corrected later, read again: each panel sees what was known at its closes."
    bars = short_bars().drop_duplicates(["ticker", "event_time"]).drop(columns="known_at")
    bars = bars.assign(
        high=bars[["open", "high", "close"]].max(axis=1), low=bars[["open", "low", "close"]].min(axis=1)
    )
    settings, panel = Settings().with_(**{"storage.home": str(tmp_path)}), panel_of()
    add_intraday(bars, "mine", settings=settings, stamps="end")
    with Lake(settings.storage, read_only=True) as lake:
        joined = with_facts(panel, lake, NYSE, {"intra_variance", "intra_vwap"})
    wanted = intraday_fields(load_intraday(settings), panel, NYSE)
    for name in ("intra_variance", "intra_vwap"):
        values = joined._fields[name].numpy()
        assert np.isfinite(values).any() and np.allclose(values, wanted[name], rtol=1e-6, equal_nan=True)
    late = bars[bars.event_time >= bars.event_time.max() - pd.Timedelta("1h")].assign(
        close=lambda b: b.close * 1.001, high=lambda b: b.high * 1.002
    )
    add_intraday(late, "mine", settings=settings, stamps="end", lag_minutes=600)
    with Lake(settings.storage, read_only=True) as lake:
        again = with_facts(panel, lake, NYSE, {"intra_variance"})
    assert np.array_equal(
        again._fields["intra_variance"].numpy(), joined._fields["intra_variance"].numpy(), equal_nan=True
    )
