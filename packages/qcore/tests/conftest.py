"""Every test starts from the same random state; Triton kernels run on CPU, interpreted."""

import os

# read when Triton is first imported, which torch may do at any time
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Seed torch before each test, and use one thread: tensors this small gain nothing by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
