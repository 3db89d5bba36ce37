"""Ask a running service what it has to answer after a rollout, and stop at the first wrong answer:

    make ci-smoke URL=https://forecasts.example      with a viewer's key in $STOCKPREDICT_API_KEY
    make ci-smoke                                    a reader from its image, on a simulated market

It asks for health, readiness, forecasts, the same as columns, the document of the API, and whether
a caller without a key is refused where keys are asked for. Nothing is changed.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))
import check


def smoke(url: str, key: str) -> dict[str, str]:  # question -> answer
    "Ask; each question has a status that is right."
    client = httpx.Client(base_url=url, timeout=30, headers={"authorization": f"Bearer {key}"} if key else {})
    answers = {}

    def ask(path: str, *right: int, **more) -> httpx.Response:
        began = time.monotonic()
        answer = client.get(path, **more)
        answers[path] = f"{answer.status_code} in {1000 * (time.monotonic() - began):.0f} ms"
        if answer.status_code not in right:
            sys.exit(f"{url}{path} answered {answer.status_code}, not {right[0]}: {answer.text[:300]}")
        return answer

    ask("/health/live", 200)
    ask("/health/ready", 200)
    rows = ask("/v1/predictions", 200).json()["data"]
    ticker = rows[0]["ticker"]
    one = ask(f"/v1/predictions/{ticker}", 200).json()["data"]
    if not any(row == rows[0] for row in (one if isinstance(one, list) else [one])):
        sys.exit(f"/v1/predictions and /v1/predictions/{ticker} do not agree")
    columns = ask("/v1/predictions", 200, headers={"accept": "text/csv"})
    if ticker not in columns.text:
        sys.exit(f"{ticker} is not in the CSV of /v1/predictions")
    ask("/openapi.json", 200)
    ask("/v1/predictions/NONE.SUCH", 404, 422)
    if key:
        stranger = httpx.get(f"{url}/v1/predictions", timeout=30)
        if stranger.status_code != 401:
            sys.exit(f"A caller without a key got {stranger.status_code} at {url}/v1/predictions")
    return answers


def from_image() -> dict[str, str]:
    "The same questions to a container of this machine."
    with tempfile.TemporaryDirectory() as folder:
        if check.run("podman", "image", "exists", "localhost/stockpredict-reader", check=False).returncode:
            words, context = check.pip_words(Path(folder)), check.copy_context(Path(folder) / "context")
            check.build("reader", context, check.chosen_base(""), words)
        home, key = check.desk_home(Path(folder))
        port = check.spare_port()
        env = {"STOCKPREDICT_SERVING__PORT": port, "STOCKPREDICT_SERVING__HOST": "127.0.0.1"}
        with check.container(
            "stockpredict-reader", home, STOCKPREDICT_ACCESS__REQUIRED="always", **env
        ) as name:
            check.wait_for(f"http://127.0.0.1:{port}/health/live", name)
            return smoke(f"http://127.0.0.1:{port}", key)


if __name__ == "__main__":
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else ""
    results = smoke(url, os.environ.get("STOCKPREDICT_API_KEY", "")) if url else from_image()
    for path, text in results.items():
        print(f"{path:35} {text}")
