"""Where blocks run: here one after another, in several processes, or on a Ray cluster.

Each is a pool of workers; :func:`~qbench.executors.dispatch.dispatch` hands blocks to any of them.
The processes of ``torchrun`` are no pool: all of them train one block.
"""

from qbench.executors.cluster import run_on_ray as run_on_ray
from qbench.executors.dispatch import dispatch as dispatch
from qbench.executors.here import run_blocks as run_blocks
from qbench.executors.processes import run_on_processes as run_on_processes
from qbench.executors.torchrun import run_together as run_together
from qbench.executors.torchrun import take_part as take_part
