"Every feature that is registered has a card that says all there is to say, and one page holds them all."

import hashlib
import re
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import SeesFuture, UnknownName
from stockpredict.core.registry import Registry
from stockpredict.evaluate.feature_study import CARD_WINDOW, feature_ic
from stockpredict.evaluate.labels import forward_returns
from stockpredict.catalogue.cards import card, card_panel, sample_panel
from stockpredict.catalogue.feature import compute, feature, FEATURES, search_features, feature_table
from stockpredict.features.price import rsi
from stockpredict.core.templates import template_text
from stockpredict.ops.handbook import handbook_page
from stockpredict.ops.reports import POLICY


@pytest.fixture(scope="module")
def page():
    return handbook_page()


def test_every_feature_says_what_it_is_and_where_it_is_from():
    rows = feature_table()
    wordy = rows.formula.str.split().str.len()
    for what, wrong in {
        "formula": wordy < 2,
        "group": rows.group.str.len() < 3,
        "source": rows.source.str.len() < 4,
        "look-back": rows.look_back < 1,
        "fields": rows.fields == "",
    }.items():
        assert not wrong.any(), f"no {what}: {rows.index[wrong].tolist()[:10]}"
    assert rows.index.is_unique and len(rows) >= 300


def test_the_page_holds_a_card_for_every_feature_with_two_pictures(page):
    cards = dict(re.findall(r'<article class="card" id="([^"]+)">(.*?)</article>', page, re.S))
    assert sorted(cards) == sorted(feature_table().index)
    for name, body in cards.items():
        f = FEATURES[name]
        assert len(re.findall(r'<path d="M[^"]+"', body)) == 2, f"{name} has nothing to show"
        assert f"looks back</dt><dd>{f.lookback} bars" in body and f.proven and "cut off" in body, name
        assert f"def {f.func.__name__}(bars" in body, f"{name} does not show how it is written"


def test_every_card_has_a_scale_and_says_what_the_feature_is_worth(page):
    "The scale and the rank IC are computed again for two features; the others have the form."
    cards = dict(re.findall(r'<article class="card" id="([^"]+)">(.*?)</article>', page, re.S))
    number = r"[-+]?[\d.]+(?:e[-+]\d+)?"
    scale = rf"<figcaption>one stock&#x27;s last year: (?:{number} to {number}|no value)</figcaption>"
    spread = rf"<figcaption>all values: (?:1 % below {number}, middle {number}, 1 % above {number}|no value)"
    measured = r"<dt>rank IC</dt><dd>([^<]+)</dd>"
    assert [n for n, body in cards.items() if not re.search(scale, body.replace("'", "&#x27;"))] == []
    assert [n for n, body in cards.items() if not re.search(spread, body)] == []
    skill = {n: re.search(measured, body)[1] for n, body in cards.items()}
    interval = re.compile(
        r"([-+]\d\.\d{3}) \[([-+]\d\.\d{3}), ([-+]\d\.\d{3})\]; one session ahead, \d+ companies"
    )
    shown = {n: [float(x) for x in m.groups()] for n, text in skill.items() if (m := interval.match(text))}
    assert len(shown) > 100 and all(low <= value <= high for value, low, high in shown.values())
    closes_only = {n for n in cards if FEATURES[n].fields <= {"close"}}
    assert set(shown) <= closes_only
    assert all(skill[n].startswith("not defined") for n in closes_only - set(shown))
    assert all("features study NAME" in skill[n] for n in set(cards) - closes_only)
    panel = sample_panel().first(CARD_WINDOW)
    for name in ("rsi_14", "mom_21"):
        values = compute(panel, [name])[name].cpu().numpy()
        outcome = forward_returns(panel.close.values, 1).cpu().numpy()
        ics = [pd.Series(x).corr(pd.Series(y), "spearman") for x, y in zip(values, outcome, strict=True)]
        assert shown[name][0] == pytest.approx(np.nanmean(ics), abs=0.002)


def test_the_page_needs_nobody_else_and_runs_only_its_own_script(page):
    assert (
        len(page) < 6e6
        and not re.findall(r'(?:src|href)="(?:https?:)?//', page)
        and page.count("<script>") == 1
    )
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    allowed = re.search(r"script-src 'sha256-([^']+)'", page)[1]
    assert (
        script == template_text("ops/handbook.js")
        and hashlib.sha256(script.encode()).digest() == b64decode(allowed)
        and POLICY in page
    )


def test_a_page_of_a_feature_named_by_an_attacker_stays_text():
    pad = Registry("feature")

    @feature(group="<b>", source="<script>alert(1)</script>", into=pad)
    def sketch(bars):
        "A <img src=x onerror=alert(1)> in the formula."
        return bars.returns

    assert not re.search(r"<(script|img|b)\b", card(pad["sketch"]))


def test_a_feature_that_peeks_has_no_card():
    from stockpredict.catalogue.feature import Feature

    def hindsight(bars):
        "Distance from the mean of all history."
        return bars.close / float(bars.close.values.nanmean()) - 1

    with pytest.raises(SeesFuture):
        card(Feature(hindsight, group="trend", source="a test"))


def test_the_one_liners_of_the_readme_work():
    sample = sample_panel()
    axes = rsi.on(sample).plot()
    assert (
        len(axes.lines) == 3
        and rsi.on(sample).lookback == FEATURES["rsi_14"].lookback < rsi.on(sample, 28).lookback
    )
    long = pd.DataFrame(
        dict(
            ticker="AAA",
            event_time=sample.sessions.tz_localize("UTC"),
            close=sample.close.frame().iloc[:, 0].to_numpy(),
        )
    )
    pd.testing.assert_series_equal(
        rsi.on(long).frame()["AAA"], rsi.on(sample).frame().iloc[:, 0], check_names=False, check_freq=False
    )
    assert len(search_features("VOLATILITY")) > 10 and search_features("no such thing").empty
    assert (
        feature_ic(rsi).value == feature_ic(rsi.on(sample)).value == feature_ic("rsi_14").value
        and abs(feature_ic("rsi_14").value) < 0.1
    )
    with pytest.raises(UnknownName, match="rsi_14"):
        FEATURES["rsi_15"]


def test_a_formula_suffices_to_compute_the_value():
    "Written from the words of the cards alone: yesterday's beta, the tail, ranks with ties, a year's scale."
    panel = card_panel()
    c = panel.close.frame().astype(float)
    r = c.pct_change()
    m = r.mean(axis=1)
    both = pd.DataFrame({t: m.where(r[t].notna()) for t in r})
    b = pd.DataFrame(
        {t: r[t].dropna().rolling(60).cov(m) / m[r[t].dropna().index].rolling(60).var() for t in r}
    )
    e = r - b.shift(1) * both
    crash = m < m.shift(1).rolling(60).mean() - m.shift(1).rolling(60).std()
    ranks = c.pct_change(5).rank(axis=1)
    wide = np.log(panel.high.frame() / panel.low.frame())  # in single precision, for its ties
    year = m.rolling(20).std()
    z = (year - year.rolling(252).mean()) / year.rolling(252).std()

    def time_rank(x):
        return ((x < x[-1]).sum() + (x == x[-1]).sum() / 2) / len(x)

    want = {
        "residual_reversal_5": -e.rolling(5).sum() / (e.rolling(60).std() * 5**0.5),
        "idio_skew_60": e.rolling(60).skew(),
        "residual_mom_63": e.rolling(63).mean() / e.rolling(63).std(),
        "tail_beta_252": (r.mul(crash, axis=0))
        .rolling(252)
        .sum()
        .div((m * crash).rolling(252).sum(), axis=0),
        "rank_return_5": (ranks - 0.5).div(ranks.count(axis=1), axis=0) - 0.5,
        "range_rank_20": wide.rolling(20).apply(time_rank, raw=True),
        "market_vol_20": pd.DataFrame({t: z.clip(-3, 3) / 6 for t in r}),
    }
    got = compute(panel, list(want))
    full = [i for i, t in enumerate(panel.tickers) if c[t].notna().all()]
    assert len(full) >= 3
    for name, x in want.items():
        a, b_ = got[name][-200:, full].double().numpy(), x.to_numpy()[-200:, full]
        assert np.isfinite(b_).mean() > 0.9, name
        np.testing.assert_allclose(a, b_, atol=5e-3, err_msg=f"{name}: {FEATURES[name].formula}")
    for name in ("vix_level", "credit_spread", "dispersion_20", "turbulence_60"):
        assert "mean of 252 x) / deviation of 252 x, limited to 3, / 6" in FEATURES[name].formula
    vague = [n for n, f in FEATURES.items() if "against its past year" in f.formula]
    assert vague == []
