"""Signatures and the comments beside their arguments, read from source text: nothing is imported."""

import ast
import io
import tokenize
from dataclasses import dataclass, field
from html import escape


@dataclass
class Argument:
    "One argument of a function, or one field of a class."

    name: str
    type: str
    default: str
    text: str  # the comment beside it


@dataclass
class Entry:
    "One public definition, as its page shows it."

    name: str  # `Class.method` for a method
    kind: str  # function, class or method
    signature: str
    text: str  # docstring
    arguments: list[Argument] = field(default_factory=list)
    returns: str = ""  # the comment beside the return type


def comments(source: str) -> dict[int, str]:
    "The comment at the end of each line that has one."
    result = {}
    if "#" not in source:
        return result
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line.lstrip().startswith("#"):
            result[token.start[0]] = token.string.lstrip("# ").strip()
    return result


def _write(node):
    return ast.unparse(node) if node is not None else ""


def _arguments(function, notes):
    spec = function.args
    first = [None] * (len(spec.posonlyargs + spec.args) - len(spec.defaults))
    pairs = list(zip(spec.posonlyargs + spec.args, first + spec.defaults, strict=True))
    pairs += [(spec.vararg, None)] if spec.vararg else []
    pairs += list(zip(spec.kwonlyargs, spec.kw_defaults, strict=True))
    pairs += [(spec.kwarg, None)] if spec.kwarg else []
    stars = {id(spec.vararg): "*", id(spec.kwarg): "**"}
    return [
        Argument(
            stars.get(id(arg), "") + arg.arg, _write(arg.annotation), _write(value), notes.get(arg.lineno, "")
        )
        for arg, value in pairs
    ]


def _signature(function, name, arguments, patched):
    kept = arguments[1:] if patched or (arguments and arguments[0].name in ("self", "cls")) else arguments
    bare = [a.arg for a in function.args.kwonlyargs]
    parts, starred = [], any(a.name.startswith("*") and a.name[1:2] != "*" for a in kept)
    for arg in kept:
        if arg.name in bare and not starred:
            parts.append("*")
            starred = True
        colon = f": {arg.type}" if arg.type else ""
        equals = (f" = {arg.default}" if colon else f"={arg.default}") if arg.default else ""
        parts.append(f"{arg.name}{colon}{equals}")
    arrow = f" -> {_write(function.returns)}" if function.returns else ""
    word = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    line = f"{word} {name}({', '.join(parts)}){arrow}"
    if len(line) > 90:
        inside = "".join(f"    {part},\n" for part in parts)
        line = f"{word} {name}(\n{inside}){arrow}"
    return line


def _patched_class(function):
    "The class that a function under `@patch` becomes a method of."
    marks = [_write(d).split("(")[0] for d in function.decorator_list]
    if not any(mark.startswith("patch") for mark in marks) or not function.args.args:
        return ""
    return _write(function.args.args[0].annotation).split("|")[0].strip().strip("\"'")


def _function(node, notes, owner=""):
    "An entry for one function or method."
    patched = _patched_class(node)
    owner = owner or patched
    arguments = _arguments(node, notes)
    name = f"{owner}.{node.name}" if owner else node.name
    marks = [_write(d) for d in node.decorator_list]
    if "property" in marks or any("as_prop" in mark for mark in marks):
        signature = f"{name}: {_write(node.returns)}" if node.returns else name
    else:
        signature = _signature(node, name, arguments, bool(patched))
    shown = [a for a in arguments if a.name not in ("self", "cls") and not (patched and a is arguments[0])]
    header_end = node.body[0].lineno
    lines = range(node.returns.end_lineno, header_end) if node.returns else ()
    returns = next((notes[line] for line in lines if line in notes), "")
    if returns and any(a.text == returns for a in shown):
        returns = ""
    return Entry(
        name, "method" if owner else "function", signature, ast.get_docstring(node) or "", shown, returns
    )


def _class(node, notes):
    "Entries for a class: itself with its fields, then its public methods."
    bases = ", ".join([_write(b) for b in node.bases])
    fields = [
        Argument(
            item.target.id,
            _write(item.annotation),
            "" if _described(item.value) else _write(item.value),
            notes.get(item.lineno, "") or _described(item.value),
        )
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not item.target.id.startswith("_")
    ]
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    start = next((n for n in functions if n.name == "__init__"), None)
    if start is not None:
        arguments = _arguments(start, notes)[1:]
        signature = _signature(start, node.name, [Argument("self", "", "", ""), *arguments], False)
        signature = "class" + signature.removeprefix("def")
        fields = arguments + fields
    else:
        signature = f"class {node.name}({bases})" if bases else f"class {node.name}"
    yield Entry(node.name, "class", signature, ast.get_docstring(node) or "", fields)
    for function in functions:
        if not function.name.startswith("_"):
            yield _function(function, notes, node.name)


def _described(value):
    "The `description` of a field of pydantic."
    if isinstance(value, ast.Call):
        for keyword in value.keywords:
            if keyword.arg == "description" and isinstance(keyword.value, ast.Constant):
                return keyword.value.value
    return ""


def entries(source: str) -> list[Entry]:
    "Every public definition of a module or of a cell, in order."
    notes, result = comments(source), []
    for node in ast.parse(source).body:
        if getattr(node, "name", "_").startswith("_"):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            result.append(_function(node, notes))
        elif isinstance(node, ast.ClassDef):
            result += _class(node, notes)
    return result


def public_names(source: str) -> list[str]:
    "What a module lists in `__all__`, plus its public methods and the definitions that other floors import."
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.Assign) and _write(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def constants(source: str, names: list[str]) -> list[Entry]:
    "Entries for those names that are bound by an assignment."
    if not names:
        return []
    notes, result = comments(source), []
    for node in ast.parse(source).body:
        target = _write(node.targets[0]) if isinstance(node, ast.Assign) else ""
        if target in names:
            value = _write(node.value)
            shown = f"{target} = {value}" if len(value) < 100 else f"{target} = …"
            result.append(Entry(target, "constant", shown, notes.get(node.lineno, "")))
    return result


def cell_text(text: str) -> str:
    "A text for a cell of a Markdown table."
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())


def code_cell(text: str) -> str:
    "Code for a cell of a Markdown table."
    short = text if len(text) < 70 else text[:67] + "…"
    return f"`{' '.join(short.split())}`".replace("|", "\\|") if text else ""


def table(headings: list[str], rows: list[list[str]]) -> str:
    "A Markdown table."
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def entry_markdown(entry: Entry, level: int = 3) -> str:
    "One definition as Markdown: heading with its anchor, signature, text, arguments."
    parts = [f'{"#" * level} `{entry.name}` {{ #{entry.name} data-toc-label="{entry.name}" }}']
    parts.append(f"```python\n{entry.signature}\n```")
    if entry.text:
        parts.append(entry.text)
    rows = [
        [code_cell(a.name), code_cell(a.type), code_cell(a.default), cell_text(a.text)]
        for a in entry.arguments
        if a.text or a.type or a.default
    ]
    if rows:
        parts.append(table(["field" if entry.kind == "class" else "argument", "type", "default", ""], rows))
    if entry.returns:
        parts.append(f"**Returns** {cell_text(entry.returns)}.")
    return "\n\n".join(parts)
