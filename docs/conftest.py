"""The pages' own modules can be imported by their tests, as they can by ``conf.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
