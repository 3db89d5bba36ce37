"""The drift alarm on quiet years and on planted changes, and its CPU time on a large market.

    python benchmarks/drift.py [--years 100] [--planted 20] [--seed 1] [--large]

Each year is one of its own: four years of a simulated market with fat tails, clustered volatility, splits and
delistings, of which the first is history for the features, three train the rule, and the last is watched.
Alarms within 21 sessions of one another count as one. A planted change begins at session 60 of the watched
year; the sessions until it is found are printed. `--large` measures 300 features of 10,000 tickers.
"""

import argparse
import time

import numpy as np
from rich.progress import track

from stockpredict.algebra.panel import Panel
from stockpredict.catalogue.feature import FEATURES, compute
from stockpredict.sources.simulate import simulate
from stockpredict.watch.drift_alarm import WINDOW, fit_drift_rule
from stockpredict.watch.session_profile import session_profile

NAMES = (
    "ret_1 ret_2 mom_5 mom_21 log_ret_42 mom_252_126 vol_20 vol_60 ewma_vol_94 night_vol_60 "
    "vol_ratio_5_20 rsi_7 rsi_14 cmo_60 sma_ratio_20 above_sma_50_20 trend_252 since_high_252 "
    "efficiency_10 ease_14 mass_25 volume_change_10 volume_ratio_252 volume_trend_20_252 pvt_slope_20 "
    "vwap_distance_10 chaikin_oscillator_3_10 corr_market_60 synchronicity_60 kyle_lambda_60 "
    "price_delay_252 residual_reversal_5 variance_ratio_5_120"
).split()
FIRST, CUT, PLANT = 252, 1008, 60
LOOKBACKS = {name: FEATURES[name].lookback for name in NAMES}


def features(bars):
    "Values of every feature, and where there are bars."
    panel = Panel.from_bars(bars)
    values = {name: x.numpy().astype(float) for name, x in compute(panel, NAMES).items()}
    return values, np.isfinite(panel.close.values.numpy())


def watched(values, present):
    "The rule of three years, and the profile of the fourth with the window before it."
    part = slice(FIRST, CUT)
    usual = session_profile({n: v[part] for n, v in values.items()}, present[part], LOOKBACKS)
    part = slice(CUT - WINDOW + 1, None)
    return fit_drift_rule(usual), session_profile(
        {n: v[part] for n, v in values.items()}, present[part], like=usual
    )


def episodes(alarms):
    "Alarms, those within a window of the last one not counted."
    count, last = 0, -WINDOW
    for at in np.flatnonzero(alarms):
        if at - last >= WINDOW:
            count, last = count + 1, at
    return count


def frozen(bars, start):
    values, present = features(bars)
    values["rsi_14"][CUT + PLANT :] = values["rsi_14"][CUT + PLANT - 1]
    return values, present


def scaled(bars, start):
    bars = bars.copy()
    bars.loc[bars.event_time >= start, "volume"] *= 100
    return features(bars)


def sector_gone(bars, start):
    names = sorted(bars.ticker.unique())
    gone = (bars.event_time >= start) & bars.ticker.isin(names[: len(names) // 6])
    return features(bars[~gone])


def wilder(factor):
    "A market whose returns, within the day and between days, have `factor` times the variance."

    def change(bars, start):
        bars = bars.sort_values(["ticker", "event_time"]).copy()
        late, groups = bars.event_time >= start, bars.groupby("ticker").adj_close
        returns = np.log(bars.adj_close / groups.shift()).fillna(0)
        moved = returns.where(~late, returns * factor**0.5).groupby(bars.ticker).cumsum()
        level = np.exp(moved) * groups.transform("first")
        inside = {c: np.log(bars[c] / bars.close) for c in ("open", "high", "low", "close")}
        for column, share in inside.items():
            bars[column] = level * np.exp(share.where(~late, share * factor**0.5))
        bars["adj_close"] = level
        return features(bars)

    return change


CHANGES = {
    "one feature frozen": frozen,
    "volume times 100": scaled,
    "a sixth of the tickers gone": sector_gone,
    "variance times 2": wilder(2),
    "variance times 9": wilder(9),
}


def quiet_years(count, seed):
    "Alarms in each quiet year."
    counts = []
    for k in track(range(count), "quiet years"):
        bars = simulate(kind="realistic", tickers=30, sessions=CUT + 252, seed=seed + k).bars
        rule, year = watched(*features(bars))
        counts.append(episodes(rule.alarms(year)))
    counts = np.array(counts)
    error = 1.96 * counts.std(ddof=1) / len(counts) ** 0.5
    seeds = f"seeds {seed} to {seed + count - 1}"
    print(f"{count} quiet years, {seeds}: {counts.mean():.2f} ± {error:.2f} alarms a year")
    print(f"  stated: {rule.alarms_a_year:.2f} or fewer; years without any: {(counts == 0).mean():.0%}")


def planted_changes(count, seed):
    "Sessions until each change is found."
    delays = {name: [] for name in CHANGES}
    for k in track(range(count), "planted changes"):
        bars = simulate(kind="realistic", tickers=30, sessions=CUT + 252, seed=seed + k).bars
        start = np.sort(bars.event_time.unique())[CUT + PLANT]
        for name, change in CHANGES.items():
            rule, year = watched(*change(bars, start))
            after = np.flatnonzero(rule.alarms(year)[PLANT:])
            delays[name].append(after[0] + 1 if len(after) else np.nan)
    seeds = f"seeds {seed} to {seed + count - 1}"
    print(f"{count} markets for each change, {seeds}; session 1 is the first changed one")
    for name, sessions in delays.items():
        known = np.array(sessions)[np.isfinite(sessions)]
        when = f"median {np.median(known):.0f}, latest {known.max():.0f}" if len(known) else "never"
        print(f"  {name:28} found in {len(known)} of {count}: {when}")


def large():
    "CPU seconds of one new session of 300 features of 10,000 tickers."
    draw = np.random.default_rng(0)
    values = {f"feature {k}": draw.normal(size=(2, 10_000)) for k in range(300)}
    there = np.ones((2, 10_000), bool)
    base = session_profile(values, there)
    long = {
        k: np.tile(getattr(base, k)[:1], (756, *[1] * (getattr(base, k).ndim - 1)))
        for k in ("counts", "unchanged")
    }
    usual = type(base)(
        base.names, base.lookbacks, base.edges, long["counts"], long["unchanged"], np.full(756, 10_000)
    )
    started = time.process_time()
    session = session_profile(values, there, like=usual)
    counted = time.process_time() - started
    rule = fit_drift_rule(usual)
    started = time.process_time()
    rule.sentence(usual.sessions(slice(-WINDOW, None)))
    print(
        f"300 features x 10,000 tickers: {counted:.2f} CPU s to count {len(session)} sessions, "
        f"{time.process_time() - started:.2f} to judge a window"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--years", type=int, default=100)
    parser.add_argument("--planted", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    if options.years:
        quiet_years(options.years, options.seed)
    if options.planted:
        planted_changes(options.planted, options.seed + 1000)
    if options.large:
        large()
