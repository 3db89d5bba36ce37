"""Families of features, a module each. Called, the folder reads feature values of the lake's market:

stockpredict.features(["AAPL", "MSFT"], "2020-01-01", names=["rsi_14", "vol_20"])
"""

import sys
from types import ModuleType


class FeaturesFolder(ModuleType):
    "This folder, which can be called."

    def __call__(self, tickers=None, start=None, end=None, names=None, settings=None):
        "Feature values as a table; the arguments are those of `catalogue.feature_store.read_features`."
        from ..catalogue.feature_store import read_features

        return read_features(tickers, start, end, names, settings)


sys.modules[__name__].__class__ = FeaturesFolder
