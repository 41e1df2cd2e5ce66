"""One fixture: every test starts from the same random state."""

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
