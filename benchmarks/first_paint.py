"""How long a browser needs until the first words of each report page are on the screen.

    python benchmarks/first_paint.py FOLDER [--repeats 3]    # FOLDER: reports of a finished run

Opens the index and every page below the folder in headless Chromium, from the disk and with an empty cache,
and prints the milliseconds from the start of the navigation to the first contentful paint (target < 1000).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tab import Tab

PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
TARGET = 1000  # milliseconds


def paint(profile: str, page: Path) -> float:
    "Milliseconds until the first paint of a page, in a browser that was just started."
    tab = Tab(profile)
    try:
        tab.resize(1280, 900)
        tab.open(page.resolve().as_uri())
        return tab.until(PAINT)
    finally:
        tab.close()


def main() -> int:
    "Print a line a page; 1 when a median misses the target."
    ask = argparse.ArgumentParser(description="First paint of the report pages.")
    ask.add_argument("folder", type=Path)
    ask.add_argument("--repeats", type=int, default=3)
    asked = ask.parse_args()
    pages = sorted(asked.folder.rglob("*.html"))
    slow = 0
    print(f"{'median ms':>9} {'worst ms':>9} {'kB':>6}  page")
    for page in pages:
        times = []
        for _ in range(asked.repeats):
            with tempfile.TemporaryDirectory(
                prefix="stockpredict-paint-", ignore_cleanup_errors=True
            ) as profile:
                times.append(paint(profile, page))
        slow += median(times) >= TARGET
        size, name = page.stat().st_size / 1e3, page.relative_to(asked.folder)
        print(f"{median(times):9.0f} {max(times):9.0f} {size:6.0f}  {name}", flush=True)
    print(f"{slow} of {len(pages)} pages need {TARGET} ms or longer.")
    return slow > 0


if __name__ == "__main__":
    raise SystemExit(main())
