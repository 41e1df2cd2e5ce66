"""Where blocks run: here one after another, in several processes, or on a Ray cluster.

Each is a pool of workers; :func:`~qbench.executors.dispatch.dispatch` hands blocks to any of them.
"""

from qbench.executors.cluster import run_on_ray as run_on_ray
from qbench.executors.dispatch import dispatch as dispatch
from qbench.executors.here import run_blocks as run_blocks
from qbench.executors.processes import run_on_processes as run_on_processes
