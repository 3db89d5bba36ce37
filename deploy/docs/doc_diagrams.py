"""Drawings of the architecture, read from the code: floors, flows and tables, as SVG that follows the page's
colours."""

import ast
import re
import tomllib
from html import escape
from pathlib import Path


def _box(x, y, width, height, lines, link="", bold=True):
    "A rectangle with lines of text, the first one bold."
    texts = "".join(
        f'<text x="{x + 8}" y="{y + 17 + 14 * n}" class="{"dg-head" if bold and n == 0 else "dg-text"}">'
        f"{escape(line)}</text>"
        for n, line in enumerate(lines)
    )
    rect = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" class="dg-box"/>'
    return f'<a href="{link}">{rect}{texts}</a>' if link else rect + texts


def _svg(name, width, height, body, label):
    tip, role = f"dg-tip-{name}", "group" if "<a " in body else "img"
    body = body.replace("url(#dg-tip)", f"url(#{tip})")
    mark = (
        f'<defs><marker id="{tip}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto-start-reverse">'
        '<path d="M0,0 L8,4 L0,8 z" class="dg-tip"/></marker></defs>'
    )
    return (
        f'<div class="diagram" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="{role}" '
        f'aria-label="{escape(label)}">{mark}{body}</svg></div>'
    )


def floors(root: Path) -> list[str]:
    "The folders of the package from bottom to top."
    return tomllib.loads((root / "pyproject.toml").read_text())["tool"]["stockpredict"]["floors"]


def floor_imports(root: Path) -> dict[str, dict[str, int]]:
    "floor -> floor below -> how many of its modules import from there."
    order, counts = floors(root), {}
    for floor in order:
        mine = counts.setdefault(floor, {})
        for module in sorted((root / "stockpredict" / floor).glob("*.py")):
            text = module.read_text(encoding="utf-8")
            targets = set(re.findall(r"^\s*from (?:stockpredict\.|\.\.)(\w+)", text, re.M))
            for target in targets & set(order) - {floor}:
                mine[target] = mine.get(target, 0) + 1
    return counts


def direct_imports(counts: dict) -> dict:
    "The same without what follows from the others: a floor that is reached through a floor between."

    def below(floor, seen):
        for target in counts[floor]:
            if target not in seen:
                seen.add(target)
                below(target, seen)
        return seen

    reach = {floor: below(floor, set()) for floor in counts}
    return {
        floor: {t: n for t, n in own.items() if not any(t in reach[other] for other in own if other != t)}
        for floor, own in counts.items()
    }


def floor_drawing(root: Path) -> str:
    "One box a floor, with arcs to the floors that it rests on."
    order, counts = floors(root), direct_imports(floor_imports(root))
    height, step, left, width = 24, 34, 20, 190
    total = step * len(order) + 20
    place = {floor: total - 20 - step * n - height // 2 for n, floor in enumerate(order)}
    arcs = []
    for floor, below in counts.items():
        for target, count in below.items():
            top, bottom = place[floor], place[target]
            bend = left + width + 30 + 22 * abs(order.index(floor) - order.index(target))
            weight = min(0.8 + 0.15 * count, 3)
            arcs.append(
                f'<path d="M{left + width},{top} C{bend},{top} {bend},{bottom} {left + width + 2},{bottom}" '
                f'class="dg-line" stroke-width="{weight:.1f}" marker-end="url(#dg-tip)"><title>'
                f"{floor} imports {target} in {count} modules</title></path>"
            )
    boxes = []
    for floor in order:
        n = len([p for p in (root / "stockpredict" / floor).glob("*.py") if p.stem != "__init__"])
        boxes.append(
            _box(
                left,
                place[floor] - height // 2,
                width,
                height,
                [f"{floor} · {n} modules"],
                f"../reference/{floor}/index.html",
            )
        )
    return _svg("floors", 560, total, "".join(arcs + boxes), "Folders of the package and what each imports")


def _wrapped_steps(tree):
    "name in the file -> (words, where): what `as_step` and `as_page` turn into a step of the flow."
    steps = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not re.search(r"as_(step|page)\b", ast.unparse(node.value)):
            continue
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):  # a, b = as_step(f), as_step(g)
            pairs = list(zip(target.elts, value.elts, strict=True))
        elif isinstance(target, ast.Tuple):  # a, b = map(as_step, (f, g))
            pairs = [
                (t, ast.Call(value.func, [f], []))
                for t, f in zip(target.elts, value.args[1].elts, strict=True)
            ]
        else:
            pairs = [(target, value)]
        for name, call in pairs:
            texts = [a.value for a in call.args[1:] if isinstance(a, ast.Constant)]
            steps[ast.unparse(name)] = (texts[0] if texts else "", ast.unparse(call.args[0]))
    return steps


def _calls(function, defined, wrapped):
    "Names that a function calls as steps, in the order of its lines, through its helpers too."
    nodes = [n for n in ast.walk(function) if isinstance(n, ast.Call | ast.Name)]
    for node in sorted(nodes, key=lambda n: (n.end_lineno, n.end_col_offset)):
        if isinstance(node, ast.Name) and node.id in wrapped:
            yield wrapped[node.id]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("share_out", "as_page", "as_step"):
                yield "", ast.unparse(node.args[0])
            elif name in defined and name not in wrapped:
                yield from _calls(defined[name], defined, wrapped)


def flow_steps(root: Path) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    "flow -> its sentence, and its steps: words, and the function of the package that does them."
    result = {}
    for path in sorted((root / "flows").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wrapped = _wrapped_steps(tree)
        defined = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        for node in defined.values():
            if any("desk_flow" in ast.unparse(mark) for mark in node.decorator_list):
                steps = dict.fromkeys(_calls(node, defined, wrapped))
                sentence = (ast.get_docstring(node) or "").split("\n")[0]
                result[path.stem] = (sentence, list(steps))
    return result


def flow_drawing(root: Path) -> str:
    "A row for each flow: its steps from left to right, wrapped."
    body, y, width, most = [], 10, 200, 3
    for name, (_, steps) in flow_steps(root).items():
        body.append(f'<text x="10" y="{y + 20}" class="dg-head">{escape(name)}</text>')
        rows = [steps[n : n + most] for n in range(0, len(steps), most)] or [[]]
        for row in rows:
            for column, step in enumerate(row):
                x = 110 + column * (width + 24)
                if column:
                    body.append(
                        f'<line x1="{x - 24}" y1="{y + 20}" x2="{x - 2}" y2="{y + 20}" class="dg-line" '
                        'stroke-width="1" marker-end="url(#dg-tip)"/>'
                    )
                words, function = step
                words = words or function.rsplit(".", 1)[-1].replace("_", " ")
                body.append(_box(x, y, width, 40, [words, function]))
            y += 50
        y += 14
    return _svg(
        "flows", 110 + most * (width + 24), y, "".join(body), "Flows of the desk and the steps of each"
    )


def lake_tables() -> dict[str, list[tuple[str, str]]]:
    "table of the lake -> its columns with their types, from the statements that create them."
    from stockpredict.lake import facts, flags, predictions
    from stockpredict.lake.lake import Lake

    result = {name: columns for name, columns in Lake.TABLES.items()}
    result |= predictions.RECORD_TABLES
    for module in (facts, flags):
        for value in vars(module).values():
            for table in value if isinstance(value, list | tuple) else [value]:
                if hasattr(table, "ddl") and isinstance(getattr(table, "name", None), str):
                    result.setdefault(table.name, table.ddl)
        for value in vars(module).values():
            if isinstance(value, dict):
                result |= {t.name: t.ddl for t in value.values() if isinstance(getattr(t, "ddl", None), str)}
    return {name: [tuple(c.split()[:2]) for c in ddl.split(",")] for name, ddl in sorted(result.items())}


def table_drawing() -> str:
    "One card a table, with its columns; the two times are marked."
    tables, columns, width = lake_tables(), 3, 230
    heights, body = [10] * columns, []
    for name, fields in sorted(tables.items(), key=lambda item: -len(item[1])):
        n = heights.index(min(heights))
        x, y, height = 10 + n * (width + 20), heights[n], 30 + 14 * len(fields)
        lines = [name]
        lines += [f"{'● ' if c in ('event_time', 'known_at') else ''}{c}  {t.lower()}" for c, t in fields]
        body.append(_box(x, y, width, height, lines))
        heights[n] += height + 18
    return _svg(
        "tables",
        columns * (width + 20) + 10,
        max(heights),
        "".join(body),
        "Tables of the lake and their columns",
    )


def architecture_page(text: str, root: Path) -> str:
    "The page with all three in the places that its text names."
    sentences = "\n".join(f"- **{name}**: {about}" for name, (about, _) in flow_steps(root).items())
    drawings = {"floors": floor_drawing(root), "flows": flow_drawing(root), "tables": table_drawing()}
    for name, drawing in (drawings | {"sentences": sentences}).items():
        text = text.replace(f"[[{name}]]", drawing)
    return text
