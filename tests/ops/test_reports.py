"""The page: safe, self-contained, small; the index: complete and escaped."""

import json
import re

import nbformat.v4 as nbf
import pandas as pd
import pytest

from stockpredict.ops import reports

EVIL = "<script>alert('x')</script>\"><img src=x onerror=steal()>"


def shown(**data):
    return nbf.new_output("display_data", data=data)


def book(*cells):
    return nbf.new_notebook(cells=[nbf.new_markdown_cell("# Title\n\n> what it is"), *cells])


@pytest.mark.parametrize(
    "html",
    [
        "<script>1</script>",
        "<SCRIPT src='https://e.example/x.js'></SCRIPT>",
        "<script>unclosed",
        "<style>body{display:none}</style>",
        "<iframe src='https://e.example'></iframe>",
        "<img src='https://e.example/p.png'>",
        "<img src=//e.example/p.png>",
        '<a href="javascript:go()">x</a>',
        "<p onclick='go()'>x</p>",
        "<p onclick=go()>x</p>",
        "<meta http-equiv=refresh content='0;url=https://e.example'>",
        "<base href='https://e.example'>",
        "<link rel=stylesheet href='https://e.example/s.css'>",
        "<form action='https://e.example'><input></form>",
        "<object data='https://e.example'></object>",
    ],
)
def test_nothing_that_runs_or_loads_survives_in_an_output(html):
    page = reports.report_page(
        "t",
        reports.report_body(
            book(nbf.new_code_cell("x", outputs=[shown(**{"text/html": f"<b>kept</b>{html}"})]))
        ),
    )
    inside = page.split("<main", 1)[1].split("</main>")[0]
    assert "kept" in inside
    assert not re.search(
        r"(?i)<\s*(script|iframe|object|embed|link|meta|base|form|input|style)\b|\son\w+\s*=|javascript:|e\.example",
        inside,
    )


def test_the_policy_stands_before_everything_and_allows_no_script():
    page = reports.report_page(
        EVIL, reports.report_body(book()), run=EVIL, as_of=EVIL, status=EVIL, lineage={EVIL: EVIL}
    )
    assert page.index("Content-Security-Policy") < page.index("<title>")
    assert "default-src 'none'" in page and "script-src" not in page
    assert "<script" not in page and "<img src=x" not in page


def test_every_fragment_escapes_what_it_is_given():
    frame = pd.DataFrame({EVIL: [EVIL], "n": [1.5]})
    created = [
        reports.table(frame, caption=EVIL),
        reports.tiles({EVIL: (EVIL, EVIL)}),
        reports.verdict_box(EVIL, EVIL, [EVIL]),
        reports.status_pill(EVIL),
        reports.bullets([EVIL]),
        reports.failure_banner(EVIL, [EVIL]),
    ]
    assert all("<script" not in f.html and "<img" not in f.html for f in created)


def test_hidden_cells_and_directives_do_not_reach_the_reader():
    page = reports.report_body(
        book(
            nbf.new_code_cell("#| hide\nsecret = 1"),
            nbf.new_code_cell("#| export\nvisible = 2", outputs=[shown(**{"text/plain": "two"})]),
        )
    )
    assert "secret" not in page and "#|" not in page and "visible" in page and "two" in page


def test_code_is_folded_and_an_image_has_words():
    cells = [
        nbf.new_markdown_cell("## Skill"),
        nbf.new_code_cell("plot()", outputs=[shown(**{"image/png": "iVBORw0KGgo="})]),
    ]
    page = reports.report_body(book(*cells))
    assert '<details class="code"' in page and 'alt="Skill"' in page


def test_an_endless_output_is_cut_and_says_so():
    cell = nbf.new_code_cell("x", outputs=[nbf.new_output("stream", name="stdout", text="y" * 3_000_000)])
    page = reports.report_body(book(cell))
    assert len(page) < 100_000 and "cut here" in page


def test_missing_values_are_a_dash_and_numbers_follow_their_format():
    numbers = pd.DataFrame({"a": [0.12345, float("nan")], "b": ["x", None]})
    created = reports.table(numbers, {"a": "+.1%"}).html
    assert "+12.3%" in created and created.count("–") == 2


def run_folder(root, name, **report):
    folder = root / "2022-12-30" / name
    folder.mkdir(parents=True)
    (folder / "page.html").write_text("a page")
    (folder / "result.json").write_text(
        json.dumps(
            {"name": "r40_validate", "as_of": "2022-12-30", "status": "complete", "started": name} | report
        )
    )


def test_the_index_lists_newest_first_and_survives_a_broken_run(tmp_path):
    run_folder(tmp_path, "a", result={"headline": {"rank IC": EVIL}, "decision": "hold", "sentence": EVIL})
    run_folder(tmp_path, "c", title=EVIL)
    run_folder(tmp_path, ".hidden.tmp")
    (tmp_path / "2022-12-30" / "b").mkdir()
    (tmp_path / "2022-12-30" / "b" / "result.json").write_text("{half")
    page = reports.write_index(tmp_path).read_text()
    assert [r["folder"] for r in reports.finished_runs(tmp_path)] == ["2022-12-30/c", "2022-12-30/a"]
    assert page.index("2022-12-30/c/page.html") < page.index("2022-12-30/a/page.html")
    assert (
        page.count("<script") == 1
        and reports.script_hash(re.findall("<script>(.*?)</script>", page, re.S)[0]) in page
    )
    assert "<img" not in page and ".hidden.tmp" not in page
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)


def test_the_index_shows_the_verdict_of_each_head_in_words_and_can_be_sifted(tmp_path):
    heads = {
        "intervals": {
            "decision": "promote",
            "short": "90 % held 90.2 %",
            "sentence": "The interval held 90.2 %.",
        },
        "direction": {"decision": "hold", "short": "no direction", "sentence": "No direction, p = 0.41."},
    }
    result = {"decision": "hold", "sentence": "No evidence.", "heads": heads, "model": "ridge"}
    result["lineage"] = {"source": "sample, 2015-01-02 to 2022-12-30"}
    run_folder(tmp_path, "2022-12-30T22:31:05Z", result=result, seconds=61.25)
    run_folder(
        tmp_path, "2022-12-29T22:31:05Z", status="failed", error={"message": "It printed without end."}
    )
    page = reports.write_index(tmp_path).read_text()
    text = " ".join(re.sub("<[^>]+>", " ", page.split("<main")[1].split("<script")[0]).split())
    assert (
        "direction hold No direction, p = 0.41." in text
        and "intervals promote The interval held 90.2 %." in text
    )
    assert "2022-12-30 22:31 61.2 s r40_validate sample direction hold intervals promote ridge" in text
    assert (
        text.index("22:31 61.2 s") < text.index("2022-12-29 22:31")
        and "failed It printed without end." in text
    )
    assert 'data-verdict="hold" data-model="ridge" data-source="sample"' in page
    assert "{" not in text and "session(s)" not in text


def test_the_index_leads_to_the_page_of_features_once_it_is_there(tmp_path):
    from stockpredict.ops.handbook import write_handbook

    run_folder(tmp_path, "a")
    link = f'<a href="{reports.CATALOGUE}">'
    assert link not in reports.write_index(tmp_path).read_text(), "a link that leads nowhere"
    cards = write_handbook(tmp_path, ["rsi_14"])
    index = (tmp_path / "index.html").read_text()
    assert link in index and "2022-12-30/a/page.html" in index and (tmp_path / reports.CATALOGUE) == cards
    assert 'href="index.html"' in cards.read_text() and reports.write_index(tmp_path).read_text() == index
    cards.unlink()
    assert link not in reports.write_index(tmp_path).read_text()


def test_a_run_whose_page_was_deleted_stays_in_the_list_without_a_link(tmp_path):
    from stockpredict.core.errors import NotFound

    run_folder(tmp_path, "a")
    run_folder(tmp_path, "b")
    (tmp_path / "2022-12-30" / "b" / "page.html").unlink()
    index, newest = reports.write_index(tmp_path).read_text(), reports.latest_report(tmp_path)
    assert "2022-12-30/b/page.html" not in index and "(page deleted)" in index
    assert "2022-12-30/a/page.html" in index
    with pytest.raises(NotFound, match="of 2022-12-30/b was moved or deleted") as refused:
        reports.whole_page(tmp_path, newest)
    assert "stockpredict report run r40_validate" in refused.value.fix


def files_of(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.parent != root}


def test_a_half_deleted_run_is_named_below_the_list_and_nothing_else_changes(tmp_path):
    for name in ("a", "b", "c", "d"):
        run_folder(tmp_path, name)
        (tmp_path / "2022-12-30" / name / "notebook.ipynb").write_text("{}")
    day = tmp_path / "2022-12-30"
    assert "Not listed" not in reports.write_index(tmp_path).read_text()
    (day / "b" / "result.json").unlink()
    (day / "c" / "result.json").write_text("{half")
    (day / "d" / "notebook.ipynb").unlink()
    kept = files_of(tmp_path)
    index = reports.write_index(tmp_path).read_text()
    assert "is missing or unreadable: 2022-12-30/b, 2022-12-30/c." in index
    links = set(re.findall('href="(2022[^"]+)"', index))
    assert links == {f"2022-12-30/{n}" for n in ("a/page.html", "a/notebook.ipynb", "a/result.json")} | {
        f"2022-12-30/{n}" for n in ("d/page.html", "d/result.json")
    }
    assert all((tmp_path / link).is_file() for link in links) and files_of(tmp_path) == kept


def test_a_moved_reports_folder_lists_the_same_runs_with_links_that_lead_somewhere(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    run_folder(before, "a")
    run_folder(before, "b")
    index = reports.write_index(before).read_text()
    before.rename(after)
    kept = files_of(after)
    assert reports.write_index(after).read_text() == index and files_of(after) == kept
    (after / "2022-12-30" / "b").rename(tmp_path / "b")
    index = reports.write_index(after).read_text()
    assert "2022-12-30/b" not in index and "2022-12-30/a/page.html" in index


def test_no_column_of_the_index_shows_json(tmp_path):
    headline = {"candidates": ["mean", "ridge"], "share": {"KO": 0.5}, "tuned": True, "note": None}
    run_folder(tmp_path, "a", result={"headline": headline})
    index = reports.write_index(tmp_path).read_text()
    assert "candidates mean, ridge, share KO 0.5, tuned yes<" in index


def test_the_latest_is_the_newest_complete_one(tmp_path):
    run_folder(tmp_path, "a")
    run_folder(tmp_path, "b", status="failed")
    assert reports.latest_report(tmp_path, "r40_validate")["folder"].endswith("/a")
