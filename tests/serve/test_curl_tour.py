"""The lines of the README about the service, each run by a shell against a server that asks for a key."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import patience
import pytest

from stockpredict.access.keys import KeyStore
from stockpredict.predict.answer_table import open_answers

from served_desk import build_settings, uvicorn_process


def tour(root):
    "The commands of the section, without their comments."
    section = (root / "README.md").read_text().split("## Ask the service")[1].split("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", section, re.S)
    return [line.split("   #")[0].rstrip() for block in blocks for line in block.strip().split("\n")]


@pytest.fixture(scope="module")
def shell(template, tmp_path_factory):
    "Runs a line of the README against a server with its own data, and returns what it prints."
    folder = tmp_path_factory.mktemp("tour")
    shutil.copytree(template.storage.home_dir, folder / "home")
    settings = build_settings(folder / "home", **{"access.required": "always"})
    bin_folder = Path(sys.executable).parent
    with uvicorn_process(settings, tmp_path_factory.mktemp("server")) as (_, url, _):
        table = open_answers(settings)
        (folder / "bars.json").write_text(json.dumps({"bars": table.header["example"]["bars"]}))
        (folder / "settings.ini").write_text(settings.to_ini())
        words = {"localhost:8000": url.removeprefix("http://"), "AAPL": "SIM00", "MSFT": "SIM01"}
        words |= {"2022-12-28": table.header["decision_session"]}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("STOCKPREDICT_")}
        environment |= {"PATH": f"{bin_folder}:{environment['PATH']}", "OMP_NUM_THREADS": "1"}

        def run(line, key="", endless=False):
            for old, new in words.items():
                line = line.replace(old, new)
            line = 'auth="Authorization: Bearer $STOCKPREDICT_API_KEY"; ' + line
            options = {"cwd": folder, "env": environment | {"STOCKPREDICT_API_KEY": key}, "text": True}
            if not endless:
                return patience.run(["bash", "-c", line], check=True, **options).stdout
            child = subprocess.Popen(
                [
                    "bash",
                    "-c",
                    f"exec {line.split('; ', 1)[1]}".replace("$auth", f"Authorization: Bearer {key}"),
                ],
                stdout=subprocess.PIPE,
                preexec_fn=patience.die_with_parent,
                **options,
            )
            event = next(text for text in child.stdout if text.startswith("data:"))
            child.terminate()
            child.wait()
            return event

        yield run, settings


def test_a_key_and_a_forecast_in_two_commands_and_the_rest_of_the_tour(root, shell):
    run, settings = shell
    create, one, _, csv, parquet, past, what_if, stream = tour(root)
    printed = run(create)
    key = re.search(r"\bsp_[\w-]+", printed)[0]
    assert KeyStore(settings.storage).entries() and "curl" in printed
    assert '"code":"key-missing"' in run(one.replace("Authorization", "X-Nothing"), key)
    assert json.loads(run(one, key))["data"]["ticker"] == "SIM00"
    lines = run(csv, key).replace('"', "").splitlines()
    assert lines[0].startswith("ticker,horizon,") and {x.split(",")[0] for x in lines[1:]} == {
        "SIM00",
        "SIM01",
    }
    run(parquet, key)
    import pandas as pd

    assert len(pd.read_parquet(settings.storage.home_dir.parent / "universe.parquet")) == 2 * (
        len({ticker for ticker, _ in open_answers(settings).rows})
    )
    answer = json.loads(run(past, key))
    assert answer["metadata"]["as_of"] and answer["data"][0]["ticker"] == "SIM00"
    assert json.loads(run(what_if, key))["data"][0]["source"] == "caller"
    assert json.loads(run(stream, key, endless=True).removeprefix("data:"))["tickers"] == ["SIM00"]
