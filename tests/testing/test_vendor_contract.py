"""Every vendor adapter passes the contract."""

import pytest

from stockpredict.sources.simulate import sample_bars
from stockpredict.testing.vendor_contract import VENDOR_CHECKS, check_vendor_adapter


@pytest.fixture(scope="module")
def market():
    return sample_bars()


# ---- the checks of an adapter


@pytest.mark.parametrize("vendor", ["yahoo", "tiingo", "fmp", "alphavantage"])
def test_every_adapter_passes_all_checks(vendor, market):
    report = check_vendor_adapter(vendor, market[market.ticker == "AAA"])
    assert report[~report.passed].to_dict("records") == [] and len(report) == len(VENDOR_CHECKS) + 6
