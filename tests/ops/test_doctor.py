"The doctor on an empty home: every check answers, and none waits for a library that it does not need."

import subprocess
import sys


def test_a_new_home_is_examined_without_torch(tmp_path):
    code = (
        "import sys; from stockpredict.core.settings import load_settings;"
        "from stockpredict.ops.doctor import doctor;"
        f"report = doctor(load_settings(overrides={{'storage.home': {str(tmp_path)!r}}}, environ={{}}));"
        "print(report.healthy, {f.name: f.state for f in report}['champion'], "
        "sorted({'torch', 'mlflow', 'lightgbm', 'great_expectations'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split(maxsplit=2)[1:] == ["warn", "[]\n"], done.stdout + done.stderr
