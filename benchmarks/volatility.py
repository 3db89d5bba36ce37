"""Volatility and intervals on real US stocks, 2015 to 2020: QLIKE of every volatility model with tests
against EWMA(.94), GARCH(1,1) and HAR, and coverage of composed intervals overall, by volatility, by year
and by name.

    python benchmarks/volatility.py [tickers=100] [refit=63] [data=PATH] [direction=mean] [only=NAMES]

Printed with tickers=482 refit=252 only=ewma,garch,har,log_har (all 482 tickers of the file, 2017 to 2020,
one session): log_har gains 2.9 % QLIKE on GARCH, 3.1 % on HAR, 5.6 % on EWMA (each p < .0001; over 5 sessions
6.4, 7.1 and 13.2 %, p .001, .002 and < .0001; over 20 sessions 12.2 % on GARCH, p .05). Its 50/80/90/95 %
intervals hold 50.0, 80.1, 90.1 and 95.0 %, the 90 % one 90.0/90.1/90.1 % by volatility tercile, and
90.2/89.5/90.4 % in 2017, 2018 and 2019; between 86.3 and 93.0 % for nine of ten names.

The speed of adaptation is not fitted to these years: a rule on simulated markets chooses it
(`benchmarks/adaptation.py`). It was first tried on some of them, before that rule was written.

Printed with tickers=120 refit=252 (121 tickers, 2017 to 2020, one session): log_har gains 2.8 % QLIKE on
GARCH (p .0002), 2.7 % on HAR (p < .0001), 6.2 % on EWMA (p < .0001); its 50/80/90/95 % intervals hold
50.0, 80.0, 90.0 and 95.0 %, the 90 % one 89.9/90.3/89.8 % by volatility tercile and 90.1/89.5/90.3 % in
2017, 2018 and 2019.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from stockpredict.algebra.panel import Panel
from stockpredict.core.calendar import get_calendar
from stockpredict.evaluate.label_mask import untrusted_bars
from stockpredict.evaluate.metrics import align_pair, diebold_mariano, interval_coverage
from stockpredict.evaluate.splits import Fold
from stockpredict.models.composed import compose_forecast
from stockpredict.models.contract import make_model, models
from stockpredict.models.dataset import Dataset
from stockpredict.train.experiment import exclude_bars
from stockpredict.train.walk_forward import walk_forward_forecasts

HERE = Path(__file__).resolve().parents[1]
DATA = HERE.parent / "shared" / "data" / "us_daily_2015_2020.parquet"
HORIZONS, FIRST = (1, 5, 20), 504


def load(path: Path, tickers: int) -> tuple[Dataset, Panel]:
    "Adjusted bars of some tickers as a dataset without untrusted bars."
    bars = pd.read_parquet(path)
    names = sorted(bars.ticker.unique())
    bars = bars[bars.ticker.isin(names[:: max(1, len(names) // tickers)])]
    bars = bars.drop_duplicates(["ticker", "date"])
    bars = bars[(bars[["open", "high", "low", "close"]] > 0).all(axis=1)]
    calendar = get_calendar()
    bars["event_time"] = calendar.closes(pd.DatetimeIndex(pd.to_datetime(bars.date)))
    ratio = bars.adj_close / bars.close
    bars = bars.assign(**{k: bars[k] * ratio for k in ("open", "high", "low", "close")})
    panel = Panel.from_bars(
        bars[["ticker", "event_time", "open", "high", "low", "close", "volume"]], calendar
    )
    data = Dataset.from_panel(panel, ["ret_1", "mom_5"], HORIZONS)
    return exclude_bars(data, panel, untrusted_bars(panel, calendar))[0], panel


def folds(sessions: int, every: int) -> list[Fold]:
    "Expanding windows, refitted every so many sessions, from the third year on."
    reach = max(HORIZONS) + 1
    starts = range(FIRST, sessions, every)
    return [Fold(a - reach, a, min(a + every, sessions), reach) for a in starts if sessions - a > reach]


def realised(data: Dataset, horizon: int) -> np.ndarray:
    "Sum of squared daily returns while a decision is held."
    r = np.expm1(data.inputs.bars.moves()["close"]) ** 2
    out, d = np.full_like(r, np.nan), data.entry_delay
    total = np.vstack([np.zeros((1, r.shape[1])), np.cumsum(np.nan_to_num(r), 0)])
    stop = len(r) - d - horizon
    out[:stop] = total[d + horizon + 1 :] - total[d + 1 : d + 1 + stop]
    return np.where(data.y[..., data.horizons.index(horizon)].isfinite().numpy(), out, np.nan)


def losses(forecast, variance: np.ndarray, horizon: int) -> np.ndarray:
    "QLIKE `[session, ticker]`, the variance not below a thousandth of the forecast."
    f = forecast.frame("volatility", horizon).to_numpy() ** 2
    ratio = np.maximum(variance / f, 1e-3)
    return ratio - np.log(ratio) - 1


def table_of_losses(forecasts: dict, data: Dataset, start: int) -> pd.DataFrame:
    "Mean QLIKE and its gain on three rivals, with two-sided p values."
    rows = []
    for h in HORIZONS:
        variance = realised(data, h)[start : start + len(next(iter(forecasts.values())).sessions)]
        each = {name: losses(f, variance, h) for name, f in forecasts.items()}
        for name, mine in each.items():
            row = dict(horizon=h, model=name, qlike=np.nanmean(mine))
            for rival in ("ewma", "garch", "har"):
                if name == rival or rival not in each:
                    continue
                a, b = align_pair(mine, each[rival])
                e = diebold_mariano(a, b, h)
                row |= {f"gain_{rival}": -e.value / np.nanmean(b), f"p_{rival}": e.p}
            rows.append(row)
    return pd.DataFrame(rows).set_index(["horizon", "model"])


def coverage(forecast, data: Dataset, start: int) -> pd.DataFrame:
    "Coverage of 50, 80, 90 and 95 % intervals: all, by tercile of volatility, by year, spread over names."
    rows = []
    for h in HORIZONS:
        y = data.y[start : start + len(forecast.sessions), :, data.horizons.index(h)].numpy()
        sigma = forecast.frame("volatility", h).to_numpy()
        edges = np.nanquantile(sigma, [1 / 3, 2 / 3])
        groups = {f"volatility {k + 1}/3": np.digitize(sigma, edges) == k for k in range(3)}
        groups |= {
            str(year): (forecast.sessions.year == year)[:, None] & np.isfinite(sigma)
            for year in sorted(set(forecast.sessions.year))
        }
        for share in (0.5, 0.8, 0.9, 0.95):
            low, high = (q.numpy() for q in forecast.interval(share, h))
            e = interval_coverage(low, high, y, share, h)
            row = dict(horizon=h, stated=share, all=e.value, low=e.low, high=e.high)
            known = np.isfinite(y) & np.isfinite(low)
            inside = (y >= low) & (y <= high)
            row |= {name: inside[g & known].mean() for name, g in groups.items() if (g & known).sum() > 1000}
            names = [inside[known[:, n], n].mean() for n in range(y.shape[1]) if known[:, n].sum() > 250]
            rows.append(row | {"names 5 %": np.quantile(names, 0.05), "names 95 %": np.quantile(names, 0.95)})
    return pd.DataFrame(rows).set_index(["horizon", "stated"])


def main(tickers="100", refit="63", data=str(DATA), direction="mean", only=""):
    began = time.perf_counter()
    dataset, panel = load(Path(data), int(tickers))
    parts = folds(len(panel), int(refit))
    names = [n for n in models.names() if models[n].kind == "volatility"]
    names = [n for n in names if not only or n in only.split(",")]
    print(f"{panel}\n{len(parts)} refits, first test session {panel.sessions[parts[0].test_start]:%Y-%m-%d}")
    forecasts, seconds = {}, {}
    for name in names:
        at = time.perf_counter()
        forecasts[name] = walk_forward_forecasts(dataset, parts, lambda name=name: make_model(name))
        seconds[name] = time.perf_counter() - at
        print(f"{name}: {seconds[name] / len(parts):.1f} s a fold", flush=True)
    start = parts[0].test_start
    pd.set_option("display.width", 220, "display.max_columns", 40)
    table = table_of_losses(forecasts, dataset, start)
    print(table.round(4).to_string())
    best = table.loc[1].qlike.idxmin()
    where = walk_forward_forecasts(dataset, parts, lambda: make_model(direction))
    composed = compose_forecast(where, forecasts[best])
    print(f"\nIntervals of {composed.model}")
    print(coverage(composed, dataset, start).round(3).to_string())
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main(**dict(a.split("=", 1) for a in sys.argv[1:]))
