"""How this process was started: alone, or by ``torchrun`` beside others."""

import os


def is_launched() -> bool:
    """Whether torchrun has started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this is the process that reads, writes and speaks for all."""
    return not is_launched() or os.environ.get("RANK") == "0"
