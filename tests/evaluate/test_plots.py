"""Every figure draws from awkward inputs too, in its own style, and leaves nothing behind."""

import io

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from stockpredict.evaluate import plots
from stockpredict.evaluate.backtest import backtest, cost_delay_surface
from stockpredict.evaluate.metrics import ic_by, ic_summary, interval_coverage, pit_table
from stockpredict.evaluate.metrics import rank_ic, reliability

levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


def pixels(fig):
    "The figure as it would be saved."
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=30)
    buffer.seek(0)
    return plt.imread(buffer)


def world(sessions, names, missing=0.0):
    rng = np.random.default_rng(sessions + names)
    score, y = rng.normal(size=(sessions, names)), 0.02 * rng.normal(size=(sessions, names))
    score[rng.random(y.shape) < missing] = np.nan
    y[rng.random(y.shape) < missing] = np.nan
    return score, y, pd.bdate_range("2015-01-02", periods=sessions)


def figures(sessions, names, missing):
    "All figures a report can hold, for one market."
    score, y, days = world(sessions, names, missing)
    ic = rank_ic(score, y, days)
    q = np.full((sessions, names, 1), 0.02) * np.array([-1.645, -0.674, 0, 0.674, 1.645])
    p = 0.5 + 0.05 * np.tanh(score)
    estimates = pd.DataFrame(
        {n: ic_summary(v).as_dict() for n, v in {"a": ic, "b": ic * 0, "c": ic * np.nan}.items()}
    ).T
    book = backtest(score, y, sessions=days)
    share = pd.DataFrame(
        {
            0.9: interval_coverage(q[..., 0], q[..., 4], y).as_dict(),
            0.5: interval_coverage(q[..., 1], q[..., 3], y, 0.5).as_dict(),
        }
    ).T
    test = pd.DataFrame(
        dict(
            value=[0.0, 0.05],
            low=[-0.1, 0.04],
            high=[0.1, 0.06],
            expected_low=[-0.1, 0.2],
            expected_high=[0.1, 0.3],
            passed=[True, False],
        ),
        index=["null", "planted"],
    )
    return {
        "verdict": plots.verdict_strip("promote", "strong", "ridge", ["A long reason, " * 12, "another"] * 3),
        "no reasons": plots.verdict_strip("hold", "none", "mean", []),
        "skill": plots.skill_plot(estimates, chosen="a", baselines=["b"]),
        "cumulative": plots.cumulative_ic({f"model {k}": ic + k / 1e5 for k in range(9)}),
        "years": plots.ic_years(ic_by(ic)),
        "months": plots.ic_months(ic),
        "groups": plots.group_bars(plots.group_returns(score, y)),
        "equity": plots.equity_plot(book.net, book.gross, book.gross * 0),
        "equity alone": plots.equity_plot(book.net),
        "surface": plots.surface_plot(cost_delay_surface(score, y, bps=(0, 5), delays=(0, 1))),
        "calibration": plots.calibration_plot(pit_table(q, levels, y), share, reliability(p, y), title="all"),
        "volatility": plots.volatility_plot(np.abs(score) * 0.01 + 0.01, y),
        "constant volatility": plots.volatility_plot(np.full(y.shape, 0.02), y),
        "coverage": plots.coverage_map(np.isfinite(y), days, [f"T{k}" for k in range(names)]),
        "fan": plots.fan_chart(100 + np.arange(30.0), q[0, :1], levels, [5], title="one horizon"),
        "self-test": plots.self_test_strip(test),
    }


@pytest.mark.parametrize("sessions, names, missing", [(40, 6, 0.0), (300, 25, 0.2)])
def test_every_figure_draws_and_leaves_nothing_behind(sessions, names, missing):
    before, rc = plt.get_fignums(), dict(matplotlib.rcParams)
    drawn = figures(sessions, names, missing)
    for name, fig in drawn.items():
        assert isinstance(fig, Figure), name
        assert pixels(fig).std() > 0.01, f"{name} is blank"
    assert plt.get_fignums() == before and dict(matplotlib.rcParams) == rc


def test_figures_without_any_value_still_draw():
    days = pd.bdate_range("2020-01-02", periods=30)
    nothing = pd.Series(np.nan, days)
    for fig in (
        plots.ic_months(nothing),
        plots.cumulative_ic({"none": nothing}),
        plots.coverage_map(np.zeros((30, 3), bool), days, list("abc")),
    ):
        assert pixels(fig).shape[2] == 4


def test_groups_are_pandas_groups():
    score, y, _ = world(200, 50, missing=0.1)
    long = pd.DataFrame({"t": np.repeat(np.arange(200), 50), "score": score.ravel(), "y": y.ravel()}).dropna()
    long["y"] -= long.groupby("t").y.transform("mean")
    count = long.groupby("t").score.transform("count")
    long["group"] = ((long.groupby("t").score.rank() - 0.5) / count * 5).astype(int)
    expected = long.groupby(["t", "group"]).y.mean().unstack().mean()
    ours = plots.group_returns(score, y, groups=5)
    np.testing.assert_allclose(ours.value.iloc[:5], expected, atol=1e-15)
    assert ours.value["top - bottom"] == pytest.approx(expected[4] - expected[0]) and ours.index.tolist() == [
        "1",
        "2",
        "3",
        "4",
        "5",
        "top - bottom",
    ]


@pytest.mark.parametrize("names, groups", [(60, 10), (20, 5), (6, 3)])
def test_fewer_names_make_fewer_groups(names, groups):
    score, y, _ = world(100, names)
    assert len(plots.group_returns(score, y)) == groups + 1


def test_a_forgotten_future_would_show_as_stairs():
    "The canary in the group plot: a score that is the outcome climbs strictly."
    _, y, _ = world(200, 50)
    assert (np.diff(plots.group_returns(y, y, groups=5).value.iloc[:5]) > 0).all()
