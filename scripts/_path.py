"""The repository on sys.path, for a command that is run by its file name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
