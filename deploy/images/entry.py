#!/opt/venv/bin/python -I
"""Start the command of a container with secrets from files: `FROM_FILE_NAME=/run/secrets/x` sets NAME to what
the file holds. A secret in a file shows neither in the definition of a container nor in `inspect`.
"""

import os
import sys
from pathlib import Path

PREFIX = "FROM_FILE_"


def with_secrets(environ: dict[str, str]) -> dict[str, str]:
    "The environment with the files' contents; a last line break does not count."
    contents = {
        k.removeprefix(PREFIX): Path(v).read_text().rstrip("\n")
        for k, v in environ.items()
        if k.startswith(PREFIX)
    }
    return {k: v for k, v in environ.items() if not k.startswith(PREFIX)} | contents


if __name__ == "__main__":
    try:
        environ = with_secrets(dict(os.environ))
    except OSError as error:
        sys.exit(f"A secret cannot be read: {error.strerror}: {error.filename}")
    os.execvpe(sys.argv[1], sys.argv[1:], environ)
