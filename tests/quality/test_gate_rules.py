"""The rules of the quality gate: what is set aside, what is remarked and kept, when a batch is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import BarsInvalid, BatchRefused
from stockpredict.quality.gate import ALLOWED_ROWS, RULES, inspect_bars
from stockpredict.sources.bars import BAR_COLUMNS, as_bars
from stockpredict.sources.simulate import sample_bars

NOW = pd.Timestamp("2024-01-01", tz="UTC")


# ---- the gate


CAL = get_calendar()


def gate(frame, **how):
    return inspect_bars(frame, CAL, **({"now": NOW} | how))


WOUNDS = [
    (dict(close=np.nan), "no close"),
    (dict(close=0.0), "price impossible; range broken"),
    (dict(close=-1.0), "price impossible; range broken"),
    (dict(open=np.inf), "price impossible; range broken"),
    (dict(open=-np.inf), "price impossible; range broken"),
    (dict(high=0.001), "range broken"),
    (dict(low=10_000.0), "range broken"),
    (dict(close=10_000.0), "range broken"),
    (dict(open=0.001), "range broken"),
    (dict(volume=-1.0), "volume impossible"),
    (dict(volume=-np.inf), "volume impossible"),
    (dict(volume=np.inf), "volume impossible"),
    (dict(event_time=pd.NaT, known_at=pd.NaT), "no session"),
    (dict(event_time=pd.Timestamp("2019-12-25 21:00Z"), known_at=NOW), "no session"),
    (dict(event_time=pd.Timestamp("2019-01-10 20:00Z")), "no session"),
    (
        dict(event_time=NOW + pd.Timedelta(days=1, hours=21), known_at=NOW + pd.Timedelta(days=2)),
        "not closed yet",
    ),
    (dict(known_at=pd.Timestamp("2019-01-01 00:00Z")), "known too early"),
    (dict(known_at=pd.NaT), "known too early"),
    (dict(ticker="aaa"), "ticker malformed"),
    (dict(ticker="';DROP TABLE bars"), "ticker malformed"),
    (dict(open=np.nan, high=np.nan, low=np.nan, volume=np.nan), ""),
    (dict(volume=0.0), ""),
    (dict(volume=np.nan), ""),
    (dict(high=1e9), ""),
]


@pytest.fixture(scope="module")
def wounded():
    "A clean market with one injected error a row, and the verdict of the gate."
    bars = sample_bars()
    for i, (cells, _) in enumerate(WOUNDS):
        for column, value in cells.items():
            bars.loc[40 * i + 7, column] = value
    return bars, gate(bars)


@pytest.mark.parametrize(
    "i", range(len(WOUNDS)), ids=[" ".join(f"{k}={v}" for k, v in cells.items()) for cells, _ in WOUNDS]
)
def test_what_cannot_be_true_is_set_aside_and_what_may_be_stays(wounded, i):
    (bars, quality), row, reason = wounded, 40 * i + 7, WOUNDS[i][1]
    place = quality.bad if reason else quality.good
    same = (
        place[BAR_COLUMNS].eq(bars.loc[row, BAR_COLUMNS])
        | (place[BAR_COLUMNS].isna() & bars.loc[row, BAR_COLUMNS].isna())
    ).all(axis=1)
    assert same.sum() == 1 and (not reason or place.reason[same].tolist() == [reason])


def test_nothing_else_is_set_aside(wounded):
    bars, quality = wounded
    wrong = [reason for _, reason in WOUNDS if reason]
    assert (
        quality.bad.reason.tolist() == wrong
        and len(quality.good) == len(bars) - len(wrong)
        and not quality.refused
    )
    count = quality.table().query("severity == 'error'").failed
    assert count.to_dict() == {
        name: sum(name in w.split("; ") for w in wrong)
        for name in [r.name for r in RULES] + ["conflicting duplicate"]
    }


def test_half_days_summer_time_and_special_closures_are_known():
    "2018-11-23 closed at 13:00 in New York; 2025-01-09 was no session; UTC closes move with summer time."

    def at(*times):
        return as_bars(
            dict(
                ticker=["AAA"] * len(times),
                event_time=pd.to_datetime(list(times), utc=True),
                known_at=pd.Timestamp("2025-06-01 00:00Z"),
                close=1.0,
                source="x",
            )
        )

    assert (
        len(
            gate(
                at(
                    "2018-11-23 18:00",
                    "2018-11-23 21:00",
                    "2025-01-09 21:00",
                    "2019-07-01 20:00",
                    "2019-07-01 21:00",
                    "2019-12-02 21:00",
                ),
                now=pd.Timestamp("2026-01-01 00:00Z"),
            ).good
        )
        == 3
    )


def test_repeated_revised_and_conflicting_rows():
    bars = sample_bars(tickers=2, sessions=30)
    again = gate(pd.concat([bars, bars.iloc[:5]]))
    assert len(again.bad) == 0 and again.good.equals(bars) and again.table().failed["repeated"] == 5
    later = bars.iloc[[3]].assign(close=bars.high[3], known_at=bars.known_at[3] + pd.Timedelta(days=1))
    revised = gate(pd.concat([later, bars]))
    assert (
        len(revised.bad) == 0
        and len(revised.good) == len(bars) + 1
        and revised.table().failed["revised"] == 1
    )
    conflict = gate(pd.concat([bars, bars.iloc[[3]].assign(close=bars.open[3])]))
    assert (
        conflict.bad.reason.tolist() == ["conflicting duplicate"] * 2 and len(conflict.good) == len(bars) - 1
    )
    broken_copy = gate(pd.concat([bars, bars.iloc[[3]].assign(close=0.0)]))
    assert len(broken_copy.bad) == 1 and broken_copy.good.equals(bars), (
        "a broken copy does not take the good one with it"
    )


def test_oddities_are_remarked_and_kept():
    bars = sample_bars()
    one = bars.ticker.eq("AAA")
    crash, unit = bars.index[one][100], bars.index[bars.ticker.eq("BBB")][50]
    prices = ["open", "high", "low", "close"]
    bars.loc[one & (bars.index >= crash), prices] *= 0.4
    bars.loc[unit, prices] *= 100
    still = bars.index[bars.ticker.eq("CCC")][20:35]
    bars.loc[still, prices] = bars.close[still[0]]
    bars.loc[still, "volume"] = 0.0
    quality = gate(bars.drop(index=[crash + 20, crash + 21]))
    result = quality.table()
    assert len(quality.bad) == 0 and len(quality.good) == len(bars) - 2
    assert (
        f"AAA {bars.event_time[crash]:%Y-%m-%d}" in result.examples["jump"]
        and result.failed["unit changed"] == 2
    )
    assert result.failed["frozen"] >= 14 and result.failed["untraded"] == 15 and result.failed["gap"] >= 1
    crashed = sample_bars()
    crashed.loc[crashed.event_time >= pd.Timestamp("2019-10-19 00:00Z"), prices] *= 0.5
    assert gate(crashed).table().failed["jump"] == 0, "a crash of everything at once is news"


def test_when_a_batch_is_refused():
    bars = sample_bars()  # about 1,437 rows: two per cent are 28

    def zero(n, frame=bars):
        return frame.assign(close=frame.close.where(np.arange(len(frame)) >= n, 0.0))

    assert not gate(zero(28)).refused and gate(zero(29)).refused and gate(zero(1), limit=0).refused
    few = bars.iloc[:20]
    assert (
        not gate(zero(ALLOWED_ROWS, few)).refused
        and gate(zero(ALLOWED_ROWS + 1, few)).refused
        and gate(zero(1, few[:1])).refused
    )
    with pytest.raises(
        BatchRefused, match=r"29 of .* rows are bad \(price impossible: 29 rows, such as AAA 2019-01-02"
    ):
        gate(zero(29)).raise_if_refused()
    assert gate(bars[:0]).raise_if_refused().rows == 0
    noon = bars.event_time.max() - pd.Timedelta(hours=1)
    assert not gate(bars[bars.event_time > noon], now=noon).refused, "an open session is no fault"


def test_a_table_that_is_no_bars_is_refused():
    with pytest.raises(BarsInvalid, match="lacks known_at"):
        gate(sample_bars().drop(columns="known_at"))


def test_the_result_shows_itself():
    quality = gate(sample_bars().assign(ticker=lambda f: f.ticker.where(f.index != 7, "<b>X</b>")))
    html = quality._repr_html_()
    assert (
        "<b>X" not in html
        and "&lt;b&gt;X" in html
        and "ticker malformed" in html
        and quality.summary() in repr(quality)
    )
    assert json.loads(json.dumps(quality.checks)) == quality.checks
    assert "Every row passed" in gate(sample_bars(tickers=1, sessions=20))._repr_html_()


def test_vendor_errors_of_the_shared_cases_are_at_least_remarked(shared):
    """Yahoo's documented errors: units wrong by a hundred are pointed out in the bad file, and not in the
    mended one."""
    london = get_calendar("XLON")
    for path in sorted((shared / "quality_cases").glob("*100x-error.csv")):

        def unit(p):
            frame = pd.read_csv(p)
            bars = as_bars(
                dict(
                    ticker="X",
                    event_time=london.event_times(frame.Date.str[:10]),
                    known_at=NOW,
                    close=frame.Close,
                    source="x",
                )
            )
            return (
                inspect_bars(bars.sort_values("event_time", ignore_index=True), london, now=NOW)
                .table()
                .failed["unit changed"]
            )

        assert unit(path) > 0 and unit(path.with_name(path.name.replace(".csv", "-fixed.csv"))) == 0
