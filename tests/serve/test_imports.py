"""The service imports none of the packages that only training needs."""

import sys

import patience

HEAVY = [
    "lightning",
    "pytorch_lightning",
    "optuna",
    "prefect",
    "papermill",
    "great_expectations",
    "mlflow",
    "sklearn",
    "matplotlib",
    "skfolio",
    "statsmodels",
]

SCRIPT = """
import asyncio, sys, httpx
from stockpredict.core.settings import load_settings
from stockpredict.serve.app import create_app
app = create_app(load_settings({ini!r}, environ={{}}))
early = [m for m in ("torch", "duckdb") if m in sys.modules]
async def go():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as c:
        read = await c.get("/v1/predictions/SIM00?horizon=1")
        lazy = "torch" in sys.modules
        await c.get("/docs")
        bars = [{{"date": f"2016-07-0{{day}}", "close": 1}} for day in (5, 6)]
        what_if = await c.post("/v1/predict", json={{"bars": bars}})
        return read.status_code, lazy, what_if.status_code, what_if.json()["error"]["code"]
print(early, asyncio.run(go()), [m for m in {heavy!r} if m in sys.modules])
"""


def test_serving_imports_no_training_package(template, tmp_path):
    "Reading needs neither torch nor the lake; asking what-if loads those, and still nothing of training."
    ini = tmp_path / "settings.ini"
    ini.write_text(template.to_ini())
    run = patience.run(
        [sys.executable, "-c", SCRIPT.format(ini=str(ini), heavy=HEAVY)],
    )
    assert run.stdout.strip().splitlines()[-1:] == ["[] (200, False, 422, 'not-enough-history') []"], (
        run.stdout + run.stderr[-3000:]
    )


def test_the_client_needs_only_types():
    heavy = ("torch", "pandas", "duckdb", "fastapi")
    code = f"import sys, stockpredict.client.client; print([m for m in {heavy} if m in sys.modules])"
    assert patience.run([sys.executable, "-c", code]).stdout.strip() == "[]"
