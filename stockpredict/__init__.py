"""From market data to a prediction you can believe, and to a plain answer when there is nothing to believe.

    import stockpredict as sp

    bars = sp.load_bars()                              # daily bars of the market that settings.ini names
    panel = sp.Panel.from_bars(bars)                   # sessions by tickers; features on it see only the past
    sp.catalogue.search("volatility")                  # more than a thousand features, each proven
    sp.features(["AAPL"], "2020-01-01")                # their values, read from the feature store

The names below are loaded when you first use them, so importing the package costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Dataset",
    "Forecast",
    "Lake",
    "Panel",
    "Series",
    "Settings",
    "Verdict",
    "add_frame",
    "backtest",
    "catalogue",
    "feature",
    "features",
    "ic_summary",
    "join_forecasts",
    "load_bars",
    "load_settings",
    "make_model",
    "rank_ic",
    "sample_prices",
    "walk_forward",
]
HOMES = {
    "AsyncClient": "client.async_client",
    "Client": "client.client",
    "Dataset": "models.dataset",
    "Forecast": "models.forecast",
    "Lake": "lake.lake",
    "Panel": "algebra.panel",
    "Series": "algebra.series",
    "Settings": "core.settings",
    "Verdict": "train.gate",
    "add_frame": "ingest.frames",
    "backtest": "evaluate.backtest",
    "feature": "catalogue.feature",
    "ic_summary": "evaluate.metrics",
    "join_forecasts": "models.forecast",
    "load_bars": "ingest.ingest",
    "load_settings": "core.settings",
    "make_model": "models.contract",
    "rank_ic": "evaluate.metrics",
    "sample_prices": "sources.source",
    "walk_forward": "evaluate.splits",
}


def __getattr__(name):
    "Load a public name, or one of the callable folders `catalogue` and `features`, at its first use."
    if name in HOMES:
        value = getattr(import_module(f".{HOMES[name]}", __name__), name)
    elif name in ("catalogue", "features"):
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"stockpredict has no {name}. It offers: {', '.join(__all__)}.")
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
