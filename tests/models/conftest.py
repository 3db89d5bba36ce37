"""Markets and fitted models for the tests of models, made once for all of them."""

import pytest
from stockpredict.models.dataset import sample_dataset
from zoo import NAMES, STOP, new


@pytest.fixture(scope="session")
def data():
    return sample_dataset(tickers=16, sessions=520, names=NAMES)


@pytest.fixture(scope="session")
def past(data):
    return data.window(0, STOP)


@pytest.fixture(scope="session")
def fitted(past):
    "Each model fitted once on the past, for all files; a test that changes one fits its own."
    fitted = {}

    def get(name):
        if name not in fitted:
            fitted[name] = new(name, seed=3).fit(past)
        return fitted[name]

    return get


@pytest.fixture(scope="session")
def null():
    "A market without anything to find."
    return sample_dataset("null", tickers=40, sessions=800, names=NAMES, seed=11)
