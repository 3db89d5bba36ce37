"""Reference pages from the program itself: commands, routes, settings, error codes, metrics and alerts."""

import re
import tempfile

from doc_api import cell_text, code_cell, table


def _page(title: str, about: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", about, *parts]) + "\n"


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---- commands


def commands(group=None, path: str = "stockpredict"):
    "Every command with its path, in the order of the program; groups that only hold others come first."
    import typer

    from stockpredict.cli.main import app

    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")


def _parameter_row(parameter):
    names = list(getattr(parameter, "opts", [])) + list(getattr(parameter, "secondary_opts", []))
    shown = parameter.name.upper() if parameter.param_type_name == "argument" else " ".join(names)
    default = parameter.default if isinstance(parameter.default, str | int | float) else ""
    default = "" if default is False or default == "" else str(default)
    need = "required" if parameter.required else code_cell(default)
    return [code_cell(shown), need, cell_text(getattr(parameter, "help", "") or "")]


def _is_hidden(parameter):
    return getattr(parameter, "hidden", False) or parameter.name in ("help", "install_completion")


def _command_block(path, command):
    rows = [_parameter_row(p) for p in command.params if not _is_hidden(p)]
    text = re.sub(r"\n +", "\n", (command.help or command.short_help or "").strip("\n"))
    text = re.sub(r"\[/?[a-z ]+\]|\f", "", text)
    parts = [f"### `{path}` {{ #{_anchor(path)} }}", text]
    parts += [table(["option or argument", "default", ""], rows)] if rows else []
    return "\n\n".join(p for p in parts if p)


def cli_page() -> str:
    "All commands."
    blocks, topics = [], []
    for path, command in commands():
        if getattr(command, "hidden", False):
            continue
        if path.count(" ") == 1:
            word = path.split(" ")[1]
            topics.append(f"[{word}](#{_anchor('group-' + word)})")
            blocks.append(f"## {word} {{ #{_anchor('group-' + word)} }}")
        blocks.append(_command_block(path, command))
    about = (
        "Every command, with its options, as `--help` prints them. Each accepts `--help`. Most accept "
        "`--set section.key=value`, which changes one of the [settings](settings.md) for this call."
    )
    return _page("Commands", about, " · ".join(topics), *blocks)


# ---- settings


def settings_page() -> str:
    "All settings."
    from stockpredict.core.settings import Settings

    defaults, blocks = Settings(), []
    for section, field in Settings.model_fields.items():
        model, rows = field.annotation, []
        for key, own in model.model_fields.items():
            value = getattr(getattr(defaults, section), key)
            if isinstance(value, list | tuple):
                value = ", ".join(map(str, value))
            if isinstance(value, dict):
                value = " ".join(f"{k}={v}" for k, v in value.items())
            anchor = f'<span id="{section}.{key}"></span>'
            text = "" if value is None or str(value) == "" else str(value)
            rows.append([f"{anchor}`{key}`", code_cell(text), cell_text(own.description or "")])
        about = (model.__doc__ or "").strip()
        blocks.append(f"## [{section}] {{ #{section} }}\n\n{about}\n\n{table(['key', 'default', ''], rows)}")
    about = (
        "`settings.ini` holds one section for each heading below. What you leave out has the default. "
        "An environment variable `STOCKPREDICT_SECTION__KEY` goes before the file, and "
        "`--set section.key=value` before both. `stockpredict settings` prints what holds "
        "now, and names what is wrong."
    )
    return _page("Settings", about, *blocks)


# ---- error codes and alerts


def _spans(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


def _runbook_block(page, summary=""):
    parts = [f"### {page.name} {{ #{page.name} }}", f"**{page.level}** · {_spans(page.means)}"]
    parts += [f"*Rings when:* {_spans(summary)}"] if summary else []
    parts.append("**Do this**\n\n" + "\n".join(f"{n}. {_spans(s)}" for n, s in enumerate(page.do, 1)))
    return "\n\n".join(parts)


def _by_topic(pages, summaries):
    topics = {}
    for page in pages:
        topics.setdefault(page.title, []).append(page)
    blocks = []
    for title, members in topics.items():
        common = set.intersection(*(set(m.look) for m in members))
        look = "\n".join(f"- {_spans(place)}" for place in members[0].look if place in common)
        blocks.append(f"## {title}\n\n{_spans(members[0].about)}\n\nLook here first:\n\n{look}")
        blocks += [_runbook_block(page, summaries.get(page.name, "")) for page in members]
    return blocks


def errors_page() -> str:
    "All stable error codes."
    from stockpredict.core.runbooks import all_runbooks

    pages = [p for p in all_runbooks().values() if not p.is_alert]
    about = (
        "Each error is a sentence, a next step and one of these codes. The code does not change between "
        "versions, so a program can rely on it. `stockpredict errors CODE` prints the page of one code, and "
        "the service shows it at `/runbooks/CODE`. P1 to P4 say [how soon](alerts.md) work has to begin."
    )
    return _page("Error codes", about, *_by_topic(pages, {}))


def alerts_page() -> str:
    "All alerts for operators."
    from stockpredict.core.runbooks import LEVELS, all_runbooks
    from stockpredict.ops.monitoring import alert_rules

    pages = [p for p in all_runbooks().values() if p.is_alert]
    summaries = {rule["name"]: rule["summary"] for rule in alert_rules()}
    levels = table(["level", "how soon"], [[name, cell_text(text)] for name, text in LEVELS.items()])
    about = (
        "What Prometheus watches, and what to do when it rings. The rules are in `deploy/monitoring/rules`, "
        "and each is tested with a case in which it rings and one in which it stays quiet. The guide "
        "[Monitoring](../guides/monitoring.md) says how to connect them. Alerts that a user sets for a stock "
        "are another matter: see [Add an alert](../guides/add_an_alert.md)."
    )
    return _page("Alerts", about, levels, *_by_topic(pages, summaries))


# ---- metrics


def metrics_page() -> str:
    "All metrics of the service."
    from stockpredict.core.settings import load_settings
    from stockpredict.serve.business_metrics import metric_table
    from stockpredict.serve.service import Service

    with tempfile.TemporaryDirectory() as home:
        rows = metric_table(Service(load_settings(None, {"storage.home": home}, environ={})))
    shown = [
        [
            f'<span id="{r["metric"]}"></span>`{r["metric"]}`',
            r["kind"],
            cell_text(r["labels"]),
            cell_text(r["meaning"]),
        ]
        for r in rows
    ]
    about = (
        "What `/metrics` of the service reports. Labels have values that are known in advance: no ticker and "
        "no caller is ever one. [Alerts](alerts.md) and the dashboards in `deploy/monitoring/grafana` "
        "ask for these."
    )
    return _page("Metrics", about, table(["metric", "kind", "labels", "meaning"], shown))


# ---- routes


def openapi() -> dict:
    "The description of the service, as a desk without forecasts gives it."
    from stockpredict.core.settings import load_settings
    from stockpredict.serve.app import create_app

    with tempfile.TemporaryDirectory() as home:
        return create_app(load_settings(None, {"storage.home": home}, environ={})).openapi()


def _type(schema, schemas):
    "A short word for the type of a schema."
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name.strip('_')}](#schema-{_anchor(name)})"
    if "anyOf" in schema:
        words = [_type(part, schemas) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), schemas)}"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    return schema.get("format") or schema.get("type") or "any"


def _error_links(text, codes):
    words = [f"[{w}](errors.md#{w})" if w in codes else cell_text(w) for w in text.split(", ")]
    return ", ".join(words)


def _operation(path, method, spec, schemas, codes):
    anchor = _anchor(f"{method}-{path}")
    parts = [f"### `{method.upper()} {path}` {{ #{anchor} }}", f"**{spec.get('summary', '')}.**"]
    parts += [spec["description"].strip()] if spec.get("description") else []
    rows = [
        [
            code_cell(p["name"]) + (" (required)" if p.get("required") else ""),
            p["in"],
            _type(p.get("schema", {}), schemas),
            cell_text(p.get("description", "")),
        ]
        for p in spec.get("parameters", [])
    ]
    parts += [table(["parameter", "in", "type", ""], rows)] if rows else []
    for kind, body in spec.get("requestBody", {}).get("content", {}).items():
        if body.get("schema"):
            parts.append(f"Body, `{kind}`: {_type(body['schema'], schemas)}")
    answers = []
    for status, answer in spec.get("responses", {}).items():
        bodies = [_type(b["schema"], schemas) for b in answer.get("content", {}).values() if b.get("schema")]
        own = _error_links(answer.get("description", ""), codes)
        answers.append([f"`{status}`", own, " or ".join(dict.fromkeys(bodies))])
    return "\n\n".join([*parts, table(["answer", "when", "body"], answers)])


def _schema_block(name, schema, schemas):
    required = set(schema.get("required", []))
    rows = [
        [
            code_cell(key) + (" (required)" if key in required else ""),
            _type(own, schemas),
            cell_text(own.get("description", "")),
        ]
        for key, own in schema.get("properties", {}).items()
    ]
    head = (
        f"### {name.strip('_')} {{ #schema-{_anchor(name)} }}\n\n{cell_text(schema.get('description', ''))}"
    )
    return f"{head}\n\n{table(['field', 'type', ''], rows)}" if rows else head


def rest_page() -> str:
    "All routes of the service."
    from stockpredict.core.runbooks import all_runbooks

    described = openapi()
    schemas, codes = described.get("components", {}).get("schemas", {}), set(all_runbooks())
    tags = {}
    for path, methods in described["paths"].items():
        for method, spec in methods.items():
            if method in ("get", "post", "put", "patch", "delete"):
                tag = (spec.get("tags") or ["other"])[0]
                tags.setdefault(tag, []).append(_operation(path, method, spec, schemas, codes))
    blocks = []
    for tag, operations in tags.items():
        blocks += [f"## {tag.capitalize()}", *operations]
    blocks += ["## Bodies", *(_schema_block(name, schema, schemas) for name, schema in schemas.items())]
    about = (
        "Every route of `stockpredict serve`, from its OpenAPI description. A running service shows the same "
        "at `/docs`, with examples that work on it. Begin with the guide [Serve](../guides/serve.md)."
    )
    return _page("REST API", about, *blocks)


PAGES = {
    "reference/cli.md": cli_page,
    "reference/rest.md": rest_page,
    "reference/settings.md": settings_page,
    "reference/errors.md": errors_page,
    "reference/metrics.md": metrics_page,
    "reference/alerts.md": alerts_page,
}
