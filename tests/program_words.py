"Command lines of manifests and units, parsed by the real programs; variables, looked up in their sources."

import functools
import importlib.util
from pathlib import Path


class WrongCommand(AssertionError):
    "The program would refuse this command line."


@functools.cache
def click_program(name):
    "The commands of a program of click's kind."
    if name == "mlflow":
        from mlflow.cli import cli

        return cli
    import typer

    from stockpredict.cli.main import app

    return typer.main.get_command(app)


def parse(words):
    "Let the program itself read a command line without running it; `WrongCommand` says what it would refuse."
    program, *rest = [str(word) for word in words]
    if program == "prefect":
        return parse_prefect(rest)
    command, context, name = click_program(program), None, program
    try:
        while True:
            context = command.make_context(name, list(rest), parent=context)
            if not hasattr(command, "commands"):
                return context.params
            name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    except Exception as error:  # click's, or those of the copy of click inside typer
        if not hasattr(error, "format_message"):
            raise
        raise WrongCommand(f"{' '.join(map(str, words))}: {error.format_message()}") from None


def parse_prefect(words):
    "Prefect's program is of cyclopts' kind."
    import cyclopts
    from prefect.cli._app import _app

    try:
        _, bound, *_ = _app.parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise WrongCommand(f"prefect {' '.join(words)}: {type(error).__name__}") from None
    return dict(bound.arguments)


@functools.cache
def sources_of(package, pattern) -> str:
    "The text of some files of an installed package, which is not imported: that would take seconds."
    folder = Path(importlib.util.find_spec(package).origin).parent
    paths = sorted(folder.glob(pattern))
    assert paths, f"{package}/{pattern}"
    return "\n".join(path.read_text() for path in paths)


def is_read(name) -> bool:
    "Does Prefect, MLflow, the AWS client, Jupyter, the PostgreSQL driver or a source of ours read it?"
    if name.startswith("MLFLOW_"):
        text = sources_of("mlflow", "environment_variables.py") + sources_of("mlflow", "cli/*.py")
        return f'"{name}"' in text
    if name.startswith("PREFECT_"):
        text = sources_of("prefect", "settings/**/*.py")
        return name in text or f'"{name.lower()}"' in text
    packages = {"AWS_": ("botocore", "*.py"), "JUPYTER_": ("jupyter_server", "auth/*.py")}
    packages |= {"PG": ("asyncpg", "connect_utils.py")}
    theirs = [place for start, place in packages.items() if name.startswith(start)]
    text = "".join(sources_of(*place) for place in [("stockpredict", "*/*.py"), *theirs]).replace("'", '"')
    return f'"{name}"' in text
