"""Facts beside the bars: what a close knew, and nothing else. Joins that peek are planted, and each must
be caught."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import FeatureError, NotEnoughHistory, SeesFuture
from stockpredict.core.settings import load_settings
from stockpredict.lake.adjustments import adjust
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import simulate
from stockpredict.catalogue.feature import Feature, as_features, compute, fill_features, prove
from stockpredict.catalogue.point_in_time import (
    as_known,
    attach_fields,
    decision_times,
    fact_series,
    count_per_session,
)
from stockpredict.catalogue.point_in_time import with_facts
from stockpredict.features.fundamentals import report_fields
from stockpredict.features.membership import neutralise_beta, demean_by_group, member_fields
from stockpredict.features.macro import macro_fields
from stockpredict.features.news import news_fields, tone
from stockpredict.algebra.panel import FIELDS, Panel, equal_with_nan
from stockpredict.algebra.series import Series

CALENDAR = get_calendar()
TICKERS = [f"SIM{i:02d}" for i in range(12)]
DAY = pd.Timedelta("1D")


@pytest.fixture(scope="module")
def panel():
    return Panel.from_bars(simulate("realistic", tickers=12, sessions=420, seed=2).bars, CALENDAR)


@pytest.fixture(scope="module")
def closes(panel):
    return decision_times(panel, CALENDAR)


def reports(seed=1, quarters=10, revisions=0.3):
    "Quarters of every ticker, known 20 to 90 days after their end, some revised later, some out of order."
    rng, rows = np.random.default_rng(seed), []
    for t in TICKERS:
        for q in pd.date_range("2014-03-31", periods=quarters, freq="QE", tz="UTC"):
            known = q + pd.Timedelta(minutes=int(rng.integers(20 * 1440, 90 * 1440)))
            form = "10-K" if q.month == 12 else "10-Q"
            for item in ("assets", "equity", "eps_diluted", "net_income", "cash_flow_op"):
                level = rng.lognormal(3, 0.5)
                rows.append((t, item, form, q, known, level))
                if rng.random() < revisions:
                    rows.append(
                        (t, item, form, q, known + pd.Timedelta(days=int(rng.integers(1, 400))), level * 1.1)
                    )
    frame = pd.DataFrame(rows, columns=["ticker", "item", "form", "event_time", "known_at", "value"])
    return frame.sample(frac=1, random_state=seed, ignore_index=True)


def macro(seed=2):
    "Daily series known a day later, with revisions, for all fields."
    rng, days = np.random.default_rng(seed), pd.date_range("2014-06-01", "2017-01-01", freq="B", tz="UTC")
    parts = [
        pd.DataFrame(
            dict(
                series=s,
                event_time=days,
                known_at=days + DAY * rng.integers(1, 4, len(days)),
                value=np.exp(rng.normal(1, 0.2, len(days))),
            )
        )
        for s in ("DGS10", "DGS2", "BAA10Y", "VIXCLS", "VXVCLS")
    ]
    whole = pd.concat(parts, ignore_index=True)
    again = whole.sample(frac=0.2, random_state=seed)
    return pd.concat(
        [whole, again.assign(known_at=again.known_at + 30 * DAY, value=again.value * 1.05)], ignore_index=True
    )


def news(seed=3, n=4000):
    rng = np.random.default_rng(seed)
    known = pd.Timestamp("2015-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 600 * 86400, n), unit="s")
    words = np.array(["Acme beats estimates", "Acme warns of loss", "Acme meets"])
    return pd.DataFrame(
        dict(
            ticker=rng.choice(TICKERS, n),
            event_time=known,
            known_at=known,
            headline=words[rng.integers(0, 3, n)],
        )
    )


def members(seed=4):
    rng = np.random.default_rng(seed)
    since = pd.Timestamp("2014-01-01", tz="UTC") + pd.to_timedelta(rng.integers(0, 800, 12), unit="D")
    until = (since + pd.to_timedelta(rng.integers(30, 600, 12), unit="D")).where(rng.random(12) < 0.5)
    return pd.DataFrame(dict(ticker=TICKERS, event_time=since, until=until, known_at=since - DAY * 5))


def everything(rows, at):
    "All fields from one set of tables."
    return (
        macro_fields(rows["macro"], at)
        | report_fields(rows["reports"], at, TICKERS)
        | news_fields(rows["news"], at, TICKERS)
        | member_fields(rows["members"], at, TICKERS)
    )


@pytest.fixture(scope="module")
def rows():
    return dict(macro=macro(), reports=reports(), news=news(), members=members())


# --- the join, against a loop


def slow(facts, at, key, stale=None):
    "The definition, one decision and one key at a time."
    out = []
    for now in at:
        known = facts[(facts.ticker == key) & (facts.known_at <= now)]
        if len(known):
            known = (
                known[known.event_time == known.event_time.max()]
                .sort_values("known_at", kind="stable")
                .tail(1)
            )
        fresh = len(known) and (stale is None or now - known.event_time.iloc[0] <= pd.Timedelta(stale))
        out.append(known.value.iloc[0] if fresh else np.nan)
    return np.array(out)


@pytest.mark.parametrize("stale", [None, "120D"])
def test_the_join_is_its_definition(closes, stale):
    facts = reports().query("item == 'assets'")
    fast = as_known(facts, closes[::7], TICKERS[:4], stale=stale)
    for i, t in enumerate(TICKERS[:4]):
        np.testing.assert_array_equal(fast[:, i], slow(facts, closes[::7], t, stale))
    assert np.isfinite(fast).any()


def test_the_second_decides(closes):
    "Known at the close counts; half a second later does not; a lag moves the moment."

    def row(known):
        return pd.DataFrame(dict(event_time=[closes[0]], known_at=[known], value=[1.0]))

    def first(known, **kw):
        return int(np.isfinite(as_known(row(known), closes, **kw)).argmax())

    assert (
        first(closes[5]) == 5
        and first(closes[5] + pd.Timedelta("500ms")) == 6
        and first(closes[5], lag="1D") == 6
    )


def test_an_old_revision_does_not_hide_a_newer_period(closes):
    facts = pd.DataFrame(
        dict(event_time=closes[[0, 20, 0, 20]], known_at=closes[[10, 30, 40, 50]], value=[1.0, 2.0, 1.5, 2.5])
    )
    got = as_known(facts, closes)
    assert got[[10, 29, 30, 40, 50]].tolist() == [1, 1, 2, 2, 2.5] and np.isnan(got[:10]).all()


def test_unknown_keys_empty_tables_and_missing_times(closes):
    facts = reports().query("item == 'assets'")
    assert (
        np.isnan(as_known(facts, closes, ["NOBODY"])).all()
        and np.isnan(as_known(facts[:0], closes, TICKERS)).all()
    )
    assert np.isnan(as_known(facts[:0], closes)).all()
    with pytest.raises(FeatureError, match="known_at"):
        as_known(facts.drop(columns="known_at"), closes, TICKERS)
    with pytest.raises(FeatureError, match="when they could be known"):
        as_known(facts.assign(known_at=pd.NaT), closes, TICKERS)
    assert (as_known(facts, closes, TICKERS[::-1])[:, ::-1] == as_known(facts, closes, TICKERS))[100:].any()
    np.testing.assert_array_equal(
        as_known(facts, closes, TICKERS[::-1])[:, ::-1], as_known(facts, closes, TICKERS)
    )


def test_news_of_the_evening_and_the_weekend_count_for_the_next_session(closes):
    friday = next(i for i, c in enumerate(closes) if c.day_of_week == 4 and i > 5)
    known = pd.DatetimeIndex(
        [closes[0], closes[friday], closes[friday] + pd.Timedelta("1s"), closes[friday] + DAY * 2]
    )
    got = count_per_session(pd.DataFrame(dict(ticker="SIM00", known_at=known)), closes, ["SIM00"])[:, 0]
    assert got[friday] == 1 and got[friday + 1] == 2 and np.isnan(got[0]) and np.nansum(got) == 3
    assert tone(pd.Series(["Profits rise", "Shares plunge on fraud probe", "Annual meeting"])).tolist() == [
        1,
        -1,
        0,
    ]


# --- as of random days


def digest(arrays, stop):
    return hashlib.sha256(
        b"".join(np.ascontiguousarray(arrays[k][:stop]).tobytes() for k in sorted(arrays))
    ).hexdigest()


JOINS = {
    "honest": everything,
    "joined on the date it is about": lambda r, at: everything(
        {k: v.assign(known_at=v.event_time) if k == "reports" else v for k, v in r.items()}, at
    ),
    "FRED's reference dates": lambda r, at: everything(
        {k: v.assign(known_at=v.event_time) if k == "macro" else v for k, v in r.items()}, at
    ),
    "newest version only": lambda r, at: everything(
        {
            k: v.sort_values("known_at")
            .drop_duplicates(["ticker", "item", "event_time"], keep="last")
            .assign(known_at=lambda f: f.event_time + 30 * DAY)
            if k == "reports"
            else v
            for k, v in r.items()
        },
        at,
    ),
    "backfilled": lambda r, at: {
        k: pd.DataFrame(v).bfill().to_numpy().reshape(np.shape(v)) for k, v in everything(r, at).items()
    },
    "nearest instead of last": lambda r, at: everything(
        {k: v.assign(known_at=v.known_at - 20 * DAY) if k == "reports" else v for k, v in r.items()}, at
    ),
    "interpolated": lambda r, at: {
        k: pd.DataFrame(v).interpolate(limit_direction="both").to_numpy().reshape(np.shape(v))
        for k, v in everything(r, at).items()
    },
    "news of the day by date": lambda r, at: everything(
        {k: v.assign(known_at=v.known_at.dt.normalize()) if k == "news" else v for k, v in r.items()}, at
    ),
    "today's members": lambda r, at: everything(
        {
            k: v[v.until.isna()].assign(event_time=v.event_time.min(), known_at=v.event_time.min())
            if k == "members"
            else v
            for k, v in r.items()
        },
        at,
    ),
    "scaled by the whole sample": lambda r, at: {
        k: (v - np.nanmean(v)) / np.nanstd(v) for k, v in everything(r, at).items()
    },
}


def looks_ahead(join, rows, closes, days):
    "Does any day's past depend on rows that were not known then?"
    whole = join(rows, closes)
    for i in days:
        then = join({k: v[v.known_at <= closes[i]] for k, v in rows.items()}, closes)
        if set(then) != set(whole) or digest(then, i + 1) != digest(whole, i + 1):
            return True
    return False


def test_as_of_random_days_the_same_values_come_out(rows, closes):
    assert not looks_ahead(everything, rows, closes, np.random.default_rng(8).integers(250, len(closes), 12))


@pytest.mark.parametrize("name", [n for n in JOINS if n != "honest"])
def test_a_join_that_peeks_is_caught(rows, closes, name):
    assert looks_ahead(JOINS[name], rows, closes, [260, 301, 347, 399]), f"{name} was not noticed"


def test_a_signal_known_two_bars_late_is_worth_less_than_it_seems(panel, closes):
    """The publication lag: tomorrow's return, published the day after it happened, predicts nothing;
    joined on its date it predicts everything."""
    coming = panel.close.frame().pct_change().shift(-1)
    long = coming.stack().rename("value").reset_index().set_axis(["session", "ticker", "value"], axis=1)
    facts = long.assign(
        event_time=CALENDAR.event_times(long.session), known_at=CALENDAR.event_times(long.session) + 5 * DAY
    )

    def ic(f):
        return (
            pd.DataFrame(as_known(f, closes, list(panel.tickers)), coming.index, coming.columns)
            .corrwith(coming, axis=1, method="spearman")
            .mean()
        )

    assert abs(ic(facts)) < 0.08 and ic(facts.assign(known_at=facts.event_time)) > 0.99


# --- as features

LEAKS = {
    "next known value": lambda b: Series(
        fact_series(b, "assets").values.roll(-1, 0), b.grid, fields={"assets"}
    ),
    "full-sample z-score": lambda b: (
        fact_series(b, "assets") - float(fact_series(b, "assets").values.nanmean())
    ),
    "back-filled": lambda b: Series(
        torch.from_numpy(fact_series(b, "assets").frame().bfill().to_numpy(copy=True)),
        b.grid,
        fields={"assets"},
    ),
    "last value of all": lambda b: (
        fact_series(b, "assets") / float(fact_series(b, "assets").values[-1].nan_to_num(1.0).mean())
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_feature_of_facts_that_peeks_is_refused(name):
    f = Feature(LEAKS[name])
    f.func.__name__, f.func.__doc__ = "mutant", name
    with pytest.raises((SeesFuture, NotEnoughHistory)):
        prove(f)


def test_by_group_and_by_beta_leave_nothing_of_either(panel):
    sector = np.tile(np.arange(12) % 3, (len(panel), 1)).astype(float)
    sector[:, 11] = np.nan
    with_sector = attach_fields(panel, dict(sector=sector))
    x = with_sector.close.pct_change(21)
    got, frame = demean_by_group(x, fact_series(with_sector, "sector")), x.frame()
    for k in range(3):
        mine = [i for i in range(11) if i % 3 == k]
        want = frame.iloc[:, mine].sub(frame.iloc[:, mine].mean(axis=1), axis=0)
        np.testing.assert_allclose(got.frame().iloc[:, mine], want, atol=1e-6)
    assert (
        got.frame().iloc[:, 11].isna().all()
        and got.crossings == x.crossings + 1
        and got.lookback == x.lookback
    )
    beta = panel.returns.beta(panel.market, 60)
    left, b = neutralise_beta(panel.returns, beta).values.double(), beta.values.double()
    b = b.masked_fill(left.isnan(), torch.nan)
    b = b - b.nanmean(1, keepdim=True)
    scale = panel.returns.values.double().abs().nanmean() * b.abs().nanmean()
    assert (left * b).nanmean(1).abs()[100:].max() < 1e-5 * max(scale, 1.0) and left.nanmean(1).abs()[
        100:
    ].max() < 1e-8


# --- payments to come


def payments(market):
    """Factors of two days: some, and later a dividend or a split for most tickers, all in the last twenty
    sessions."""
    days, names = np.sort(market.event_time.unique()), sorted(market.ticker.unique())
    known = [(t, days[len(days) // 3], 0.95) for t in names[2:6]]
    coming = [(t, days[-20], 0.9 + 0.01 * i) for i, t in enumerate(names[:4])] + [
        (names[5], days[-15], 0.5),
        (names[6], days[-10], 3.0),
    ]
    return [
        pd.DataFrame(rows, columns=["ticker", "event_time", "factor"]).sort_values(
            ["ticker", "event_time"], ignore_index=True
        )
        for rows in (known, known + coming)
    ]


def test_a_payment_to_come_changes_no_feature():
    """The whole catalogue on bars as they were adjusted before and after the last twenty sessions. A few
    parts in a million are left to log(volume + 1)."""
    market = simulate("realistic", tickers=8, sessions=560, seed=3).bars.sort_values(
        ["ticker", "event_time"], ignore_index=True
    )
    then, now = (
        Panel.from_bars(adjust(market, f), CALENDAR, torch.float64).first(540) for f in payments(market)
    )
    planted = {
        Feature(lambda b: (b.close * b.volume).mean(20).xrank()),
        Feature(lambda b: b.close.mean(5)),
        Feature(lambda b: b.volume.mean(5)),
    }
    # the other formulas of Alpha101 compare price levels: the paper has them so, and the catalogue says it
    levels = set(as_features("alpha101")) - set(as_features("alpha101_steady"))
    chosen = [f for f in (*as_features("all"), *planted) if f not in levels]
    rng = np.random.default_rng(1)
    beside = sorted(set().union(*(f.fields for f in chosen)) - set(FIELDS))
    facts = {k: np.exp(0.3 * rng.standard_normal(then.present.shape)).round(1) for k in beside}
    facts["sector"] = np.tile(np.arange(8.0) % 3, (540, 1))
    both = [{f: torch.empty_like(then.close.values) for f in chosen} for _ in range(2)]
    for panel, out in zip((then, now), both, strict=True):
        fill_features(attach_fields(panel, facts), out)
    moved = set()
    for f in chosen:
        a, b = (x[f].masked_fill(~x[f].isfinite(), torch.nan) for x in both)
        defined = ~(a.isnan() | b.isnan())
        assert defined.any(), f"{f.name} is never defined, the test is empty"
        gap = (a - b)[defined].abs() / (a[defined].abs() + a[defined].std())
        if not torch.equal(a.isnan(), b.isnan()) or gap.max() > 5e-6:
            moved.add(f)
    assert planted <= moved, "the test does not notice what it is for"
    assert sorted(f.name for f in moved - planted) == []


def test_money_is_what_was_published():
    """As a column or as a product, in pieces or whole; absent where close or volume is; a column of one's
    own is believed."""
    market = simulate("realistic", tickers=8, sessions=80, seed=5).bars.sort_values(
        ["ticker", "event_time"], ignore_index=True
    )
    market.loc[7, "volume"] = np.nan
    market.loc[9, "close"] = np.nan
    want = Panel.from_bars(market, CALENDAR).money
    assert (
        want.fields == {"close", "volume"}
        and want.lookback == 1
        and want.values.isnan().sum() == (~Panel.from_bars(market).present).sum() + 1
    )
    panel = Panel.from_bars(adjust(market, payments(market)[1]), CALENDAR)
    torch.testing.assert_close(panel.money.values, want.values, rtol=1e-6, atol=0.0, equal_nan=True)
    assert (panel.close * panel.volume).values.nan_to_num().ne(want.values.nan_to_num()).any(), (
        "nothing was adjusted, the test is empty"
    )
    cut = panel.select(panel.tickers[::-1]).last(30).until(panel.sessions[-5])
    assert equal_with_nan(cut.money.values, panel.money.values[-30:-4].flip(1))
    assert all(
        equal_with_nan(part.money.values, panel.money.values[:, at : at + 4]) for at, part in panel.blocks(4)
    )
    own = Panel.from_bars(market.assign(money=7.0), CALENDAR).money.values
    assert equal_with_nan(own, want.values * 0 + 7.0) and equal_with_nan(
        Panel.from_bars(adjust(market.assign(money=7.0), payments(market)[0]), CALENDAR).money.values, own
    )
    assert Panel.from_bars(market.drop(columns="volume").assign(money=7.0)).money.values.isnan().all(), (
        "without a volume it is unknown"
    )


# --- from the lake


def test_the_lake_as_of_a_day_gives_the_panel_of_that_day(tmp_path, rows):
    settings = load_settings(environ={}, overrides={"storage.home": str(tmp_path)})
    bars = simulate("realistic", tickers=12, sessions=420, seed=2).bars
    with Lake(settings.storage) as lake:
        early = bars[bars.known_at <= pd.Timestamp("2016-03-01", tz="UTC")]
        lake.append(early)
        for table, name in (
            ("macro", "macro"),
            ("fundamentals", "reports"),
            ("news", "news"),
            ("members", "members"),
        ):
            frame = rows[name] if name != "members" else rows[name].assign(index_name="sp500")
            if name == "news":
                frame = frame.assign(hash=[f"{i}" for i in range(len(frame))])
            known = frame.known_at <= pd.Timestamp("2016-03-01", tz="UTC")
            lake.add(table, frame[known])
            rows.setdefault("later", []).append((table, frame[~known]))
        panel = Panel.from_bars(lake.bars(adjusted=False), CALENDAR)
        then = compute(with_facts(panel, lake, CALENDAR), "facts")
        for table, frame in rows.pop("later"):
            lake.add(table, frame)
        now = compute(with_facts(panel, lake, CALENDAR), "facts")
    assert sum(not v.isnan().all() for v in then.values()) >= 10, (
        "too few features are defined, the test is empty"
    )
    for name in then:
        assert equal_with_nan(then[name], now[name]), f"{name} changed when later facts came"


# --- recorded reports and rates


def test_recorded_reports_are_used_from_the_day_they_were_filed(shared):
    wide = pd.read_parquet(shared / "us_fundamentals_2016.parquet").dropna(subset=["end_date"])
    tickers = ["AAPL", "MSFT", "DRI", "CAG", "COST", "NKE"]
    wide = wide[wide.ticker.isin(tickers)]
    long = wide.melt(
        ["ticker", "as_of", "end_date", "doc_type"],
        ["assets", "equity", "eps_diluted", "net_income", "cash_flow_op"],
        "item",
    )
    facts = pd.DataFrame(
        dict(
            ticker=long.ticker,
            item=long["item"],
            form=long.doc_type,
            value=long.value.astype(float),
            event_time=pd.to_datetime(long.end_date, utc=True),
            known_at=pd.to_datetime(long.as_of, utc=True) + DAY,
        )
    )
    closes = CALENDAR.closes(CALENDAR.sessions("2016-01-04", "2016-12-30"))
    whole = report_fields(facts, closes, tickers)
    assert np.isfinite(whole["assets"]).any(0).all() and set(whole) == {
        "assets",
        "equity",
        "eps_diluted",
        "net_income",
        "cash_flow_op",
    }
    for i, t in enumerate(tickers):
        first = facts.known_at[(facts.ticker == t) & (facts["item"] == "assets") & facts.value.notna()].min()
        assert np.isnan(whole["assets"][closes < first, i]).all(), (
            f"{t} had assets before any report was filed"
        )
    assert not looks_ahead(
        lambda r, at: report_fields(r["f"], at, tickers), dict(f=facts), closes, [20, 77, 130, 201, 240]
    )
    assert looks_ahead(
        lambda r, at: report_fields(r["f"].assign(known_at=r["f"].event_time), at, tickers),
        dict(f=facts),
        closes,
        [20, 77, 130, 201],
    )


def test_recorded_rates_give_spreads_of_the_known_size(shared):
    rates = (
        pd.read_parquet(shared / "macro" / "fred_rates.parquet")[["date", "DGS10", "DGS2"]]
        .melt("date", var_name="series")
        .dropna()
    )
    day = pd.to_datetime(rates.date, utc=True)
    facts = rates.assign(event_time=day, known_at=day + pd.Timedelta("1D22h"))
    closes = CALENDAR.closes(CALENDAR.sessions("2006-06-01", "2007-12-31"))
    got = macro_fields(facts, closes)
    assert np.isnan(got["vix"]).all()
    spread = got["yield_10y"] - got["yield_2y"]
    assert np.isfinite(spread).all() and -0.3 < spread.min() < 0 < spread.max() < 1.5, (
        "the curve was inverted in 2006 and steep by the end of 2007"
    )
    assert not looks_ahead(lambda r, at: macro_fields(r["m"], at), dict(m=facts), closes, [100, 250, 390])


# --- rows dated by their period


@pytest.mark.parametrize(
    "hours, counts_after",
    [(-24, "90D"), (0, "90D"), (20, "90D"), (25, "25h"), (24 * 40, "960h"), (24 * 150, "3600h")],
)
def test_a_report_dated_by_its_period_counts_after_the_publication_lag(tmp_path, hours, counts_after):
    "What claims to be known by the end of its period is not believed; what is known later stays as it is."
    settings = load_settings(environ={}, overrides={"storage.home": str(tmp_path)})
    bars = simulate("realistic", tickers=3, sessions=420, seed=2).bars
    panel = Panel.from_bars(bars, CALENDAR)
    period = CALENDAR.closes(panel.sessions[[80]])[0].normalize()
    row = dict(ticker=panel.tickers[0], item="assets", form="10-Q", event_time=period, value=7.0)
    with Lake(settings.storage) as lake:
        lake.append(bars)
        lake.add("fundamentals", pd.DataFrame([row | dict(known_at=period + pd.Timedelta(hours=hours))]))
        got = with_facts(panel, lake, CALENDAR, ["assets"])._fields["assets"][:, 0].numpy()
    closes = CALENDAR.closes(panel.sessions)
    first = closes[np.isfinite(got)][0]
    assert first == closes[closes >= period + pd.Timedelta(counts_after)][0]


def test_rates_dated_by_their_day_count_two_days_later_and_headlines_at_once(tmp_path):
    settings = load_settings(environ={}, overrides={"storage.home": str(tmp_path)})
    bars = simulate("realistic", tickers=3, sessions=120, seed=2).bars
    panel = Panel.from_bars(bars, CALENDAR)
    closes = CALENDAR.closes(panel.sessions)
    day = closes[50].normalize()
    rate = dict(series="VIXCLS", event_time=day, known_at=day, value=20.0)
    headline = dict(ticker=panel.tickers[0], hash="h", headline="up")
    headline |= dict(event_time=closes[50], known_at=closes[50])
    with Lake(settings.storage) as lake:
        lake.append(bars)
        lake.add("macro", pd.DataFrame([rate]))
        lake.add("news", pd.DataFrame([headline]))
        fields = with_facts(panel, lake, CALENDAR, ["vix", "headlines"])._fields
    assert closes[np.isfinite(fields["vix"][:, 0].numpy())][0] == closes[closes >= day + 2 * DAY][0]
    assert np.nanargmax(fields["headlines"][:, 0].numpy()) == 50
