"""Champion, challengers and pinned models answer from one pass, in one table."""

import json

import orjson
import pytest

from stockpredict.core.errors import ArtifactRejected, UnknownName
from stockpredict.predict.answer_table import TABLE_FILE, AnswerTable, open_answers, refresh_answers
from stockpredict.predict.several_models import BesideEntry, Engine, read_beside, write_beside
from stockpredict.predict.table_format import pack_table

from served_desk import point, publish


@pytest.fixture
def rivals(settings):
    "A champion, a challenger with other features and a pinned model."
    champion = json.loads((settings.storage.registry_dir / "champion.json").read_text())["artifact"]
    challenger = publish(settings, "ridge", 2, features=("ret_1", "mom_21")).name
    pinned = publish(settings, "ridge", 3, features=("vol_20", "ret_1")).name
    point(settings, champion, 4)
    write_beside(settings, [BesideEntry(challenger, version=2), BesideEntry(pinned, "pinned")])
    return settings, champion, challenger, pinned


def test_each_model_answers_beside_the_champion_as_it_would_alone(rivals):
    settings, champion, *others = rivals
    report = refresh_answers(settings)
    table = open_answers(settings)
    assert report.status == "written" and list(table.beside) == others
    assert [(c["artifact"], c["role"]) for c in table.header["beside"]] == [
        (others[0], "challenger"),
        (others[1], "pinned"),
    ]
    for artifact in (champion, *others):
        point(settings, artifact, 4)
        write_beside(settings, [])
        alone = Engine(settings).predict_universe().predictions
        stored = [orjson.loads(b + b"}") for t in table.tickers for b in table.get(t, None, artifact)]
        assert [p["quantiles"] for p in stored] == [p["quantiles"] for p in alone]
        assert {p["model"]["artifact"] for p in stored} == {artifact}


def test_a_table_is_written_again_when_a_challenger_comes_or_goes(rivals):
    settings, *_ = rivals
    assert refresh_answers(settings).status == "written"
    assert refresh_answers(settings).status == "unchanged"
    write_beside(settings, read_beside(settings)[:1])
    assert refresh_answers(settings).status == "written" and len(open_answers(settings).beside) == 1


def test_a_challenger_that_fails_takes_no_answer_away(rivals):
    settings, _, challenger, pinned = rivals
    folder = settings.storage.registry_dir / "versions" / challenger
    (folder / "weights.safetensors").write_bytes(b"damaged")
    refresh_answers(settings)
    table = open_answers(settings)
    assert list(table.beside) == [pinned] and table.rows and challenger in table.header["beside_problems"]
    with pytest.raises(UnknownName, match=pinned[:12]):
        table.get(table.tickers[0], 1, challenger)


def test_an_unsigned_list_leaves_the_champion_alone(rivals):
    settings, *_ = rivals
    path = settings.storage.registry_dir / "beside.json"
    path.write_text(path.read_text().replace('"none"', '"strong"'))
    with pytest.raises(ArtifactRejected, match="not what this installation has signed"):
        read_beside(settings)
    refresh_answers(settings)
    table = open_answers(settings)
    assert not table.beside and table.header["beside_problems"]


def test_a_table_of_an_earlier_version_is_read(tmp_path):
    "Its index has four columns; so has ours where the champion answers alone."
    raw = pack_table({"key": "k"}, {("AAPL", 1): b'{"a":1'})
    (tmp_path / TABLE_FILE).write_bytes(raw)
    table = AnswerTable.open(tmp_path / TABLE_FILE)
    assert [len(line) for line in table.index] == [4] and table.get("AAPL", 1) == [b'{"a":1']
