"""How this process was started: alone, or by ``torchrun`` beside others."""

import os
import time

_SPEAKS_WITHIN = 30.0


def is_launched() -> bool:
    """Whether torchrun has started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this is the process that reads, writes and speaks for all."""
    return not is_launched() or os.environ.get("RANK") == "0"


def let_the_first_speak() -> None:
    """Wait, in any process but the first, which most often meets what this one has met: when it has
    said so and ended, torchrun ends this one as well."""
    if not is_first():
        time.sleep(_SPEAKS_WITHIN)
