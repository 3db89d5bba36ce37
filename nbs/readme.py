"""README.md from nbs/index.ipynb, without Quarto: `python nbs/readme.py [--stdout]`."""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def shown(outputs: list) -> str:
    "The text that a cell answered with; pictures stay in the notebook."
    parts = []
    for out in outputs:
        data = out.get("data", {})
        text = (
            data.get("text/markdown")
            or ("" if "image/png" in data or "text/html" in data else data.get("text/plain"))
            or out.get("text")
            or ""
        )
        if "text/html" in data and "image/png" not in data and not data.get("text/markdown"):
            text = data.get("text/plain", "")
        parts.append("".join(text).rstrip())
    return "\n".join(p for p in parts if p)


def markdown(notebook: dict) -> str:
    "The notebook as one Markdown page; cells marked `#| hide` stay behind."
    blocks = ["<!-- Made from nbs/index.ipynb by `make readme`; edit the notebook. -->"]
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\]\((?!https?:|#|/)([^)]+)\)", r"](nbs/\1)", text)
            blocks.append(text.replace("](nbs/../", "]("))
        elif text and not re.search(r"^#\|\s*hide", text, re.M):
            code = "\n".join(line for line in text.split("\n") if not line.startswith("#|"))
            blocks.append(f"```python\n{code}\n```")
            answer = shown(cell.get("outputs", []))
            if answer:
                blocks.append(f"```\n{answer}\n```")
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    page = markdown(json.loads((HERE / "index.ipynb").read_text(encoding="utf-8")))
    if "--stdout" in sys.argv:
        sys.stdout.write(page)
    else:
        (HERE.parent / "README.md").write_text(page, encoding="utf-8")
