"""A run: strict at the door, whole on disk, readable when it fails."""

import json
import subprocess
import sys
import threading
import time

import nbformat
import nbformat.v4 as nbf
import pytest

from stockpredict.core.errors import ParameterRefused, RunFailed, RunTimeout, UnknownName
from stockpredict.core.settings import load_settings
from stockpredict.ops import run_parameters, runs

FINISH = "from stockpredict.ops.runs import finish\nfinish({'headline': {'seen': repr(word)}, 'value': word})"


@pytest.fixture
def settings(tmp_path):
    return load_settings(
        overrides={
            "storage.home": str(tmp_path / "home"),
            "storage.reports": str(tmp_path / "reports"),
            "models.seed": 99,
        }
    )


def template(
    folder,
    *cells,
    parameters="word: str = 'default'  # to be shown\nnumber: int = 3",
    tags=("parameters",),
    name="r01_try",
):
    code = [nbf.new_code_cell(parameters, metadata={"tags": list(tags)}), *map(nbf.new_code_cell, cells)]
    nbformat.write(
        nbf.new_notebook(cells=[nbf.new_markdown_cell("# Try\n\n> it"), *code]), folder / f"{name}.ipynb"
    )
    return name


def left_behind(settings):
    return [p for p in settings.storage.reports_dir.glob("*/*") if p.name != "index.html"]


WORDS = [
    "plain",
    'it\'s "quoted"',
    "'; import os; os.system('touch hacked'); '",
    "back\\slash \n new line",
    "{braces} %s ${HOME}",
    "ünï ✓ 雪",
    "__import__('os').getpid()",
    '"""',
    "#| hide",
    "",
]


def test_values_arrive_as_they_were_given_and_are_never_run(tmp_path, settings):
    name = template(
        tmp_path,
        "from stockpredict.ops.runs import finish\nfinish({'words': words, 'table': table})",
        parameters="words: list[str] = []\ntable: dict[str, str] = {}",
    )
    done = runs.run(
        name,
        {"words": WORDS, "table": {w: w for w in WORDS}},
        settings=settings,
        as_of="2022-12-30",
        folder=tmp_path,
    )
    assert done.result["words"] == WORDS and done.result["table"] == {w: w for w in WORDS}
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "given, report",
    [
        ({"wort": "x"}, "did you mean word"),
        ({"word": 5}, "word must be str"),
        ({"number": True}, "number must be int"),
        ({"number": "3"}, "number must be int"),
        ({"word": float("nan")}, "plain data"),
        ({"word": b"bytes"}, "plain data"),
        ({"word": object()}, "plain data"),
        ({"word": "redis://:hunter2@cache:6379/0"}, "environment"),
        ({"word": "x" * 200_000}, "hand over a path"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path, settings, given, report):
    with pytest.raises(ParameterRefused, match=report) as refused:
        runs.run(template(tmp_path, FINISH), given, settings=settings, folder=tmp_path)
    assert "hunter2" not in str(refused.value)
    assert left_behind(settings) == []


@pytest.mark.parametrize("tags", [(), ("parameter",)])
def test_a_template_without_the_tag_is_refused(tmp_path, settings, tags):
    with pytest.raises(ParameterRefused, match="tagged"):
        runs.run(template(tmp_path, FINISH, tags=tags), {"word": "x"}, settings=settings, folder=tmp_path)


@pytest.mark.parametrize("name", ["r99_nothing", "../r01_try", "/etc/passwd", "r01_try\0", "r01_tri"])
def test_a_name_is_a_name_and_not_a_path(tmp_path, settings, name):
    (tmp_path / "inner").mkdir()
    template(tmp_path, FINISH)
    with pytest.raises(UnknownName):
        runs.run(name, settings=settings, folder=tmp_path / "inner")


def test_the_kernel_sees_the_settings_of_the_caller(tmp_path, settings):
    cells = (
        "from stockpredict.core.settings import load_settings\nfrom stockpredict.ops.runs import finish\n"
        "s = load_settings(settings_path or None, overrides)\nfinish({'hash': s.hash, 'home': "
        "str(s.storage.home_dir), 'as_of': as_of})"
    )
    name = template(
        tmp_path, cells, parameters="settings_path: str = ''\noverrides: dict = {}\nas_of: str = ''"
    )
    report = runs.run(name, settings=settings, as_of="2022-12-30", folder=tmp_path).result
    assert (report["hash"], report["home"], report["as_of"]) == (
        settings.hash,
        str(settings.storage.home_dir),
        "2022-12-30",
    )


def test_an_override_beats_the_environment_in_the_kernel_too(tmp_path, settings, monkeypatch):
    monkeypatch.setenv("STOCKPREDICT_MODELS__SEED", "5")
    mine = load_settings(overrides={"storage.reports": settings.storage.reports, "models.seed": 7})
    cells = (
        "from stockpredict.core.settings import load_settings\nfrom stockpredict.ops.runs import finish\n"
        "finish({'seed': load_settings(settings_path or None, overrides).models.seed})"
    )
    name = template(tmp_path, cells, parameters="settings_path: str = ''\noverrides: dict = {}")
    assert runs.run(name, settings=mine, folder=tmp_path).result["seed"] == 7


def test_a_complete_run_leaves_three_files_and_lineage(tmp_path, settings):
    done = runs.run(template(tmp_path, FINISH), settings=settings, as_of="2022-12-30", folder=tmp_path)
    assert sorted(p.name for p in done.dir.iterdir()) == ["notebook.ipynb", "page.html", "result.json"]
    report = json.loads((done.dir / "result.json").read_text())
    page = done.html.read_text()
    assert report["status"] == "complete" and report["settings"] == settings.hash
    assert report["parameters"] == {}
    assert report["run_id"] in page and settings.hash in page and "default" in page
    assert (settings.storage.reports_dir / "index.html").exists()


def test_two_runs_of_one_day_say_the_same_under_two_names(tmp_path, settings):
    first, second = (
        runs.run(template(tmp_path, FINISH), settings=settings, as_of="2022-12-30", folder=tmp_path)
        for _ in range(2)
    )
    assert first.result == second.result and first.dir != second.dir


def test_a_failing_run_is_kept_and_named(tmp_path, settings):
    name = template(tmp_path, "print('shown-first')", "import sys\n1 / 0", "print('never')")
    with pytest.raises(RunFailed, match=r"code cell 3 of 4.*division by zero") as failed:
        runs.run(name, settings=settings, as_of="2022-12-30", folder=tmp_path)
    assert "\x1b" not in str(failed.value) and not any(
        "\x1b" in line for line in failed.value.context["lines"]
    )
    folder = left_behind(settings)[0]
    report, page = json.loads((folder / "result.json").read_text()), (folder / "page.html").read_text()
    assert report["status"] == "failed" and "ZeroDivisionError" in report["error"]["message"]
    assert page.index("This run stopped at") < page.index("shown-first") and 'class="pill red"' in page
    assert "papermill-error" not in page and "An Exception was encountered" not in page


def test_a_cell_that_never_ends_is_stopped_for_all_cells_together(tmp_path, settings):
    name = template(tmp_path, "import time\ntime.sleep(1)", "while True: pass")
    with pytest.raises(RunTimeout, match=r"code cell 3 of 3.*stopped after 8 s"):
        runs.run(name, settings=settings, folder=tmp_path, timeout=8)
    assert json.loads((left_behind(settings)[0] / "result.json").read_text())["status"] == "timeout"


def test_a_kernel_that_dies_is_a_failure_with_a_page(tmp_path, settings):
    with pytest.raises(RunFailed, match="died"):
        runs.run(
            template(tmp_path, "print('so far')", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
            settings=settings,
            folder=tmp_path,
        )
    assert "so far" in (left_behind(settings)[0] / "page.html").read_text()


def test_a_kernel_that_aborts_is_named_by_its_signal_and_its_last_words_are_kept(tmp_path, settings):
    "The trace that Python's fault handler writes to standard error stands on the page."
    name = template(tmp_path, "import os\nos.abort()")
    with pytest.raises(RunFailed, match="died of SIGABRT") as failed:
        runs.run(name, settings=settings, folder=tmp_path)
    assert "Fatal Python error: Aborted" in failed.value.context["lines"][0]
    assert "Fatal Python error: Aborted" in (left_behind(settings)[0] / "page.html").read_text()


DRAW = """
import matplotlib.pyplot as plt
from stockpredict.ops.figure_twins import report_figures
report_figures()
figure, ax = plt.subplots(figsize=(2, 1))
ax.plot([1, 2, 3], [0.5, float("nan"), 1 / 3], label="rank IC")
ax.set_title("By year")
plt.close(figure)
figure
"""


def test_the_numbers_of_a_figure_lie_beside_the_page_and_are_linked(tmp_path, settings):
    done = runs.run(template(tmp_path, DRAW), settings=settings, folder=tmp_path)
    twin = json.loads((done.dir / "figure-01.json").read_text())
    assert twin["run"] == done.dir.name and twin["title"] == "By year" and twin["cell"]
    [line] = twin["axes"][0]["series"]
    assert (line["label"], line["x"], line["y"]) == ("rank IC", [1, 2, 3], [0.5, None, 0.333333])
    page = done.html.read_text()
    assert 'href="figure-01.json"' in page and "image/png" in page and "figure+json" not in page


def test_a_cell_that_prints_without_end_is_stopped(tmp_path, settings):
    with pytest.raises(RunFailed, match="printed without end"):
        runs.run(
            template(tmp_path, "while True: print('x' * 100_000)"),
            settings=settings,
            folder=tmp_path,
            timeout=3600,
        )
    folder = left_behind(settings)[0]
    assert (folder / "notebook.ipynb").stat().st_size < 30_000_000 and (
        folder / "page.html"
    ).stat().st_size < 200_000


def test_nothing_is_visible_before_it_is_complete(tmp_path, settings):
    "While the kernel works, the reports folder shows no run."
    name, seen = template(tmp_path, "import time\ntime.sleep(2)", FINISH), []
    work = threading.Thread(
        target=lambda: runs.run(name, settings=settings, as_of="2022-12-30", folder=tmp_path)
    )
    work.start()
    while work.is_alive():
        seen += [
            sorted(x.name for x in p.iterdir())
            for p in settings.storage.reports_dir.glob("*/[!.]*")
            if p.is_dir()
        ]
        time.sleep(0.05)
    assert all(files == ["notebook.ipynb", "page.html", "result.json"] for files in seen)
    assert len(left_behind(settings)) == 1


def test_declared_parameters_are_read_and_not_run():
    cell = "a: int = 1  # first\nb = 'x'\nc: list[str] = ['#no']  # a list\nimport os"
    matches = run_parameters.cell_parameters(cell)
    assert [(p.name, p.kind, p.default, p.doc) for p in matches.values()] == [
        ("a", "int", 1, "first"),
        ("b", "str", "x", ""),
        ("c", "list[str]", ["#no"], "a list"),
    ]
    with pytest.raises(ValueError, match="malformed"):
        run_parameters.cell_parameters("a = __import__('os').getpid()")


def test_what_a_killed_run_left_is_swept_away_at_once_and_elsewhere_a_day_later(tmp_path, settings):
    import os

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [".old.elsewhere-1.tmp", ".young.elsewhere-1.tmp"]
    names += [runs.hidden_name("r01", ended.pid), runs.hidden_name("r02", os.getpid())]
    old, young, killed, running = (settings.storage.reports_dir / "2022-12-30" / n for n in names)
    for p in (old, young, killed, running):
        p.mkdir(parents=True)
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    runs.remove_abandoned(settings.storage.reports_dir)
    assert [p.exists() for p in (old, young, killed, running)] == [False, True, False, True]


def test_headline_numbers_keep_their_order(tmp_path, settings):
    template(
        tmp_path, "from stockpredict.ops.runs import finish\nfinish({'headline': {'z': 1, 'a': 2, 'm': 3}})"
    )
    runs.run("r01_try", settings=settings, as_of="2022-12-30", folder=tmp_path)
    assert "z 1, a 2, m 3" in (settings.storage.reports_dir / "index.html").read_text()
