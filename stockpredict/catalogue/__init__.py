"""How features are registered, proven, joined, stored and shown. The folder itself answers for its features:

stockpredict.catalogue["rsi_14"]
stockpredict.catalogue.search("volatility")
"""

import sys
from types import ModuleType


class CatalogueFolder(ModuleType):
    "This folder, which looks features up by name."

    @staticmethod
    def _registry():
        from .feature import FEATURES

        return FEATURES

    def __getitem__(self, name):
        return self._registry()[name]

    def __contains__(self, name):
        return name in self._registry()

    def __iter__(self):
        return iter(self._registry())

    def __len__(self):
        return len(list(self._registry()))

    def search(self, word=""):
        "Features whose name, formula, group or source mention this word, as a table."
        from .feature import search_features

        return search_features(word)

    def table(self, names="all"):
        "Features with group, formula, look-back and source, as a table."
        from .feature import feature_table

        return feature_table(names)


sys.modules[__name__].__class__ = CatalogueFolder
