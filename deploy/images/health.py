"""Healthcheck of a container, with the standard library alone:

health.py            does the service in it answer at /health/live?
health.py prefect    does the Prefect server that $PREFECT_API_URL names answer?
health.py URL        does this address answer?
"""

import os
import ssl
import sys
import urllib.request
from urllib.parse import urlsplit


def address(words: list[str]) -> str:
    "The address to ask; empty when there is none."
    if words[:1] == ["prefect"]:
        api = urlsplit(os.environ.get("PREFECT_API_URL", ""))  # its login stays unused and unseen
        return api._replace(netloc=api.netloc.rpartition("@")[2]).geturl() + "/health" if api.netloc else ""
    if words:
        return words[0]
    scheme = "https" if os.environ.get("STOCKPREDICT_SERVING__TLS_CERT") else "http"
    return f"{scheme}://127.0.0.1:{os.environ.get('STOCKPREDICT_SERVING__PORT', '8000')}/health/live"


def main(words: list[str]) -> str | None:  # what is wrong
    "Ask once."
    context = ssl._create_unverified_context()  # on the loopback address a certificate names another host
    try:
        if url := address(words):
            urllib.request.urlopen(url, timeout=5, context=context if "//127.0.0.1:" in url else None).close()
    except OSError as error:
        return f"no answer: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
