"A script that is part of no package, such as those of deploy and benchmarks, as a module."

import importlib.util
from pathlib import Path


def load_script(path):
    "Run a script as a module of its own, named after its file."
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
