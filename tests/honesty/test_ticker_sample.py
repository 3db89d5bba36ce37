"""A panel is proven on some tickers only where tickers are independent; leaks of wide panels are caught."""

import pytest

from stockpredict.algebra.panel import Series
from stockpredict.algebra.proof_market import wide_panel
from stockpredict.algebra.ticker_sample import SAMPLED, sampled_tickers
from stockpredict.catalogue.feature import FEATURES, SETS, Feature, prove_on
from stockpredict.core.errors import SeesFuture
from stockpredict.features import momentum, price, volatility  # noqa: F401

SEEN = {}


@pytest.fixture(scope="module")
def panel():
    return wide_panel(sessions=320, tickers=60)


def examined(f, panel):
    "How many tickers the proof takes."
    f = f if isinstance(f, Feature) else Feature(f)
    return len(sampled_tickers(f, f._traits[0], panel).tickers)


def leak(bars):
    return Series(bars.close.values.roll(-1, 0), bars.grid, fields={"close"})


def wider_than_40(bars):
    "Tomorrow's close where there are many tickers."
    return leak(bars) if len(bars.tickers) > 40 else bars.close.mean(5)


def wider_than_10(bars):
    "Tomorrow's close where there are more than ten tickers."
    return leak(bars) if len(bars.tickers) > 10 else bars.close.mean(5)


def remembered(bars):
    "The close of the widest panel that was ever seen, on the same number of sessions."
    if len(bars.tickers) > 40:
        SEEN["close"] = bars.close.values
    if "close" in SEEN and len(bars.tickers) == 60:
        return Series(SEEN["close"][-1:].expand(len(bars), -1), bars.grid, fields={"close"})
    return bars.close.mean(5)


def of_one_name(bars):
    "Another window where a name is among the tickers."
    return bars.close.mean(5) if "W07" in bars.tickers else bars.close.mean(6)


@pytest.mark.parametrize("f", [wider_than_40, wider_than_10, remembered])
def test_a_leak_of_wide_panels_is_refused(panel, f):
    SEEN.clear()
    assert examined(f, panel) == 60
    with pytest.raises(SeesFuture):
        prove_on(Feature(f), panel, 0.1, fresh=True)


def test_a_feature_that_knows_a_name_is_refused_whatever_the_sample(panel):
    for _ in range(5):
        with pytest.raises(SeesFuture, match=r"names of the tickers|another value"):
            prove_on(Feature(of_one_name), panel, 0.1)


def test_what_compares_tickers_or_reads_facts_is_proven_on_all(panel):
    own = {n for n in SETS["core"] if not FEATURES[n].crossings}
    widths = {n: examined(FEATURES[n], panel) for n in sorted(own)[:20]}
    assert list(widths.values()).count(SAMPLED) >= 15 and set(widths.values()) <= {SAMPLED, 60}, widths
    assert examined(lambda bars: bars.close.xrank() / 2, panel) == 60
    assert examined(lambda bars: leak(bars) * 0 + bars.close, panel) == 60
    assert examined(FEATURES["bollinger_20"], wide_panel(tickers=18)) == 18
