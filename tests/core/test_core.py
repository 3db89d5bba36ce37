"""Settings, registry and errors."""

import ast
import copy
import functools
import json
import pickle
import re
import subprocess
import sys

import pytest

from stockpredict.core import errors
from stockpredict.core.errors import (
    NameTaken,
    RegistryError,
    SettingsError,
    StockpredictError,
    UnknownName,
    all_errors,
    did_you_mean,
    near,
)
from stockpredict.core.registry import Registry, load_all
from stockpredict.core.sections import parse_pairs
from stockpredict.core.settings import Settings, load_settings


def problems(**kw):
    with pytest.raises(SettingsError) as e:
        load_settings(**({"environ": {}} | kw))
    return e.value.context["problems"]


# ---- settings


def test_settings_ini_is_what_the_defaults_write(root):
    assert (root / "settings.ini").read_text() == Settings().to_ini()
    assert load_settings(root / "settings.ini", environ={}).model_dump() == Settings().model_dump()


def test_every_setting_has_a_sentence():
    for section in Settings.model_fields.values():
        for key, field in section.annotation.model_fields.items():
            assert field.description and field.description.endswith("."), key


def test_the_default_file_may_be_absent_but_a_named_one_may_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).model_dump() == Settings().model_dump()
    for named in (dict(path="nowhere.ini"), dict(environ={"STOCKPREDICT_SETTINGS": "nowhere.ini"})):
        with pytest.raises(SettingsError, match=r"nowhere\.ini cannot be read"):
            load_settings(**({"environ": {}} | named))


def test_later_layers_win(tmp_path):
    file = tmp_path / "mine.ini"
    file.write_text("[gate]\nalpha = .02\nnull_seeds = 3\n[serving]\nport = 81 # inline\n")
    env = {
        "STOCKPREDICT_GATE__ALPHA": ".03",
        "STOCKPREDICT_SERVING__PORT": "82",
        "STOCKPREDICT_SHARED": "x",
        "HOME": "y",
    }
    s = load_settings(file, {"serving.port": 83}, env)
    assert (s.gate.alpha, s.gate.null_seeds, s.serving.port) == (0.03, 3, 83)
    assert load_settings(None, environ={"STOCKPREDICT_SETTINGS": str(file)}).serving.port == 81


def test_all_problems_of_all_places_come_together(tmp_path):
    file = tmp_path / "bad.ini"
    file.write_text("[dta]\nsource = x\n[gate]\nalpa = 1\n[serving]\nport = 0\ndevice = gpu\n")
    env = {
        "STOCKPREDICT_SIMULATED__KIND": "magic",
        "STOCKPREDICT_PORT": "1",
        "STOCKPREDICT_COSTS__BPS": "nan",
    }
    result = problems(
        path=file,
        environ=env,
        overrides={"data.universe": "AAPL aapl", "nonsense": 1, "validation.folds": "two"},
    )
    for part in (
        "[dta]",
        "Did you mean [data]?",
        "Did you mean alpha?",
        "from 1 to 65535",
        "cuda:1",
        "null, planted, realistic",
        "STOCKPREDICT_PORT is no setting",
        "'nonsense' is no setting",
        "'two'",
        "bps",
    ):
        assert any(part in p for p in result), (part, result)
    assert len(result) == 9


@pytest.mark.parametrize(
    "override, part",
    [
        ({"validation.horizons": "5 1"}, "ascending"),
        ({"validation.horizons": "1 1"}, "ascending"),
        ({"validation.horizons": "0 1"}, "positive"),
        ({"validation.horizons": ""}, "horizons"),
        ({"validation.horizons": "1 60", "validation.first_train": 40}, "first_train"),
        ({"data.universe": "KO,PEP,ko"}, "KO"),
        ({"data.start": "2020-01-02", "data.end": "2019-01-01"}, "after end"),
        ({"data.start": "01/02/2020"}, "YYYY-MM-DD"),
        ({"data.source": "files"}, "files_path"),
        ({"models.candidates": "mean mean"}, "repeats mean"),
        ({"data.files_columns": "Symbol"}, "pairs"),
        ({"simulated.rank_ic": "inf"}, "from 0 to 0.3"),
        ({"simulated.tickers": 2.5}, "whole number"),
    ],
)
def test_values_that_do_not_fit_are_refused(override, part):
    result = problems(overrides=override)
    assert len(result) == 1 and part in result[0], result


def test_broken_files_are_refused_in_a_sentence(tmp_path):
    for name, text in {
        "nohead": b"a = 1\n",
        "twice": b"[data]\nsource=a\nsource=b\n",
        "latin": "[data]\nsource = caf\xe9".encode("latin-1"),
    }.items():
        file = tmp_path / f"{name}.ini"
        file.write_bytes(text)
        with pytest.raises(SettingsError, match=f"{name}.ini"):
            load_settings(file, environ={})
    with pytest.raises(SettingsError):
        load_settings(tmp_path, environ={})
    bom = tmp_path / "bom.ini"
    bom.write_bytes(b"\xef\xbb\xbf[serving]\r\nport = 81\r\n")
    assert load_settings(bom, environ={}).serving.port == 81
    default = tmp_path / "default.ini"
    default.write_text("[DEFAULT]\nport = 1\n")
    assert "no section [default]" in problems(path=default)[0]


def test_to_ini_reads_back(tmp_path):
    s = Settings().with_(
        **{
            "data.universe": ["KO", "BRK-B"],
            "data.files_columns": {"ticker": "Symbol", "close": "Adj Close"},
            "data.end": "2020-01-01",
        }
    )
    (tmp_path / "s.ini").write_text(s.to_ini())
    assert load_settings(tmp_path / "s.ini", environ={}).model_dump() == s.model_dump()


def test_settings_are_frozen_and_variations_are_checked():
    s = Settings()
    with pytest.raises(Exception, match="frozen"):
        s.gate.alpha = 0.5
    with pytest.raises(SettingsError, match="Did you mean alpha"):
        s.with_(**{"gate.alfa": 1})
    assert s.with_(**{"gate.alpha": 0.05}).gate.alpha == 0.05 and s.gate.alpha == 0.01


def test_hash_names_what_can_change_a_result():
    s = Settings()
    same = {
        "storage.home": "x",
        "serving.port": 1,
        "schedule.retrain": "daily",
        "data.files_path": "y",
        "storage.catalog": "postgres:x",
    }
    assert s.with_(**same).hash == s.hash and len(s.hash) == 12
    other = {
        "costs.bps": 6,
        "models.seed": 8,
        "data.universe": "KO",
        "simulated.seed": 2,
        "gate.alpha": 0.02,
        "validation.folds": 6,
        "features.normalise": "none",
    }
    assert len({s.with_(**{k: v}).hash for k, v in other.items()} | {s.hash}) == len(other) + 1


def test_relative_places_start_at_the_settings_file(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[storage]\nhome = kept\n")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    s = load_settings("../settings.ini", environ={})
    assert s.storage.lake_dir.resolve() == tmp_path / "kept/lake"
    for twin in (s.with_(**{"gate.alpha": 0.02}), pickle.loads(pickle.dumps(s)), copy.deepcopy(s)):
        assert twin.storage.keys_dir == s.storage.keys_dir
    monkeypatch.chdir(tmp_path)
    assert str(load_settings(environ={}).storage.lake_dir) == "kept/lake"
    assert s.with_(**{"storage.home": "/elsewhere"}).storage.home_dir.as_posix() == "/elsewhere"


def test_pairs_keep_spaces_in_values():
    assert parse_pairs("a=Adj Close, b=x") == {"a": "Adj Close", "b": "x"} and parse_pairs("") == {}


@pytest.mark.parametrize(
    "module, unwanted", [("settings", "pandas"), ("errors", "pydantic"), ("calendar", "exchange_calendars")]
)
def test_core_modules_import_little(module, unwanted):
    code = f"import sys, stockpredict.core.{module}; sys.exit('{unwanted}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- errors


def test_codes_are_stable():
    codes = {row["code"] for row in all_errors()}
    assert codes >= {
        "settings-invalid",
        "unknown-name",
        "name-taken",
        "not-a-session",
        "source-unavailable",
        "file-missing",
        "columns-unmapped",
        "bars-invalid",
        "batch-refused",
        "unknown-ticker",
        "empty-universe",
        "lake-locked",
        "lake-unavailable",
        "feature-sees-future",
        "not-enough-history",
        "not-enough-sessions",
        "unknown-horizon",
        "model-not-fitted",
        "model-output-invalid",
        "artifact-rejected",
        "no-champion",
        "parameter-refused",
        "run-failed",
        "run-timeout",
        "flow-locked",
        "request-invalid",
        "not-ready",
        "queue-full",
        "not-found",
    }
    assert len(codes) == len(all_errors())


@pytest.mark.parametrize("row", all_errors(), ids=lambda r: r["name"])
def test_every_error_survives_pickling_and_tells_its_code(row):
    e = pickle.loads(pickle.dumps(getattr(errors, row["name"])("A problem.", "A fix.", ticker="KO")))
    assert isinstance(e, StockpredictError) and str(e) == f"A problem. A fix. [{row['code']}]"
    assert (
        e.as_dict()["context"] == {"ticker": "KO"}
        and row["when"].endswith(".")
        and 400 <= row["status"] < 600
    )


def test_near_matches():
    assert near("HORIZON", ["horizons", "folds"]) == ["horizons"] and near("zzz", ["a"]) == []
    assert "20 more" not in did_you_mean("zzz", ["a"]) and "and 8 more" in did_you_mean(
        "zzz", [f"k{i}" for i in range(20)]
    )


# ---- registry


def test_registry_refuses_two_different_parts_under_one_name():
    r = Registry("thing")

    def a():
        return 1

    def b():
        return 2

    assert r.register("x")(a) is a
    with pytest.raises(NameTaken, match="'x' is taken"):
        r.register("x")(b)
    assert r["x"] is a


def test_the_same_definition_may_come_again_and_the_newer_one_counts():
    def created(module):
        def part():
            return module

        part.__module__ = module
        return part

    r = Registry("thing")
    r.add("x", created("__main__"))
    newer = created("stockpredict.somewhere")
    r.add("x", newer)
    assert r["x"] is newer
    with pytest.raises(NameTaken):
        r.add("x", created("stockpredict.elsewhere"))
    r.add("p", functools.partial(newer))
    r.add("p", functools.partial(newer))
    assert r.names() == ["p", "x"] and "x" in r and "y" not in r and dict(r.items())["x"] is newer


def test_a_registry_loads_its_package_when_asked(tmp_path, monkeypatch):
    pack = tmp_path / "lazyparts"
    pack.mkdir()
    (pack / "__init__.py").write_text(
        "from stockpredict.core.registry import Registry\nparts = Registry('part', 'lazyparts')\n"
    )
    (pack / "one.py").write_text("from lazyparts import parts\n@parts.register('one')\ndef one(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import lazyparts

    assert "lazyparts.one" not in sys.modules
    assert lazyparts.parts["one"]() == 1 and len(lazyparts.parts) == 1
    with pytest.raises(UnknownName, match="Did you mean one"):
        lazyparts.parts["onee"]
    (pack / "two.py").write_text("import no_such_library\n")
    with pytest.raises(RegistryError, match=r"lazyparts\.two could not be imported.*no_such_library"):
        load_all("lazyparts")


def test_every_code_has_its_entry_in_the_guide(root):
    cells = json.loads((root / "nbs/guides/operate.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next(s for c in cells if (s := "".join(c["source"])).startswith("WHAT_TO_DO = {"))
    guide = ast.literal_eval(source.removeprefix("WHAT_TO_DO = ").strip())
    stated = re.compile(r'code, status = "([a-z0-9-]+)"')
    everywhere = [path.read_text() for path in (root / "stockpredict").rglob("*.py")]
    codes = [code for text in everywhere for code in stated.findall(text)]
    assert sorted(guide) == sorted(codes) and {row["code"] for row in all_errors()} <= set(codes)
    assert all(len(text) > 12 and text.endswith(".") for text in guide.values())
