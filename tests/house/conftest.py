import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from notebooks import read_all


@pytest.fixture(scope="session")
def notebooks(root):
    return read_all(root / "nbs")
