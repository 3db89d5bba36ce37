"""`import stockpredict as sp`: the names a user needs, loaded when they are first used."""

import subprocess
import sys

import pytest

import stockpredict as sp


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, stockpredict; heavy = {'numpy', 'pandas', 'torch', 'duckdb', 'pydantic', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)), dir(stockpredict))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("[]") and all(name in done.stdout for name in sp.__all__), done.stderr


@pytest.mark.parametrize("name", sp.__all__)
def test_every_public_name_can_be_loaded_and_explains_itself(name):
    assert getattr(sp, name).__doc__


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(
        AttributeError, match=r"stockpredict has no lakes\. It offers: .*Client, .*walk_forward"
    ):
        sp.lakes  # noqa: B018


def test_the_catalogue_folder_looks_features_up():
    assert sp.catalogue["rsi_14"].name == "rsi_14" and "rsi_14" in sp.catalogue
    assert len(sp.catalogue) == len(list(sp.catalogue)) > 1000
    assert "rsi_14" in sp.catalogue.search("rsi").index and len(sp.catalogue.table("core")) > 10


def test_the_features_folder_can_be_called(tmp_path, monkeypatch):
    from stockpredict.core.errors import StockpredictError

    settings = sp.load_settings(overrides={"storage.home": str(tmp_path)})
    with pytest.raises(StockpredictError, match="stockpredict ingest"):
        sp.features(["AAPL"], "2020-01-01", names=["rsi_14"], settings=settings)
