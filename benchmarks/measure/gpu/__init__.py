"""Everything that is to be measured on a GPU, in one command."""

import sys
from importlib.util import find_spec
from pathlib import Path

PARTS_FOLDER = Path(__file__).parent

if find_spec("pydantic") is None:  # a machine with torch and transformers need not have it
    sys.path.append(str(PARTS_FOLDER / "without_pydantic"))
