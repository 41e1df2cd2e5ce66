"""The papers on quadratic networks, rerun: every claim beside its measurement.

``qbench run uci`` trains a paper's table, ``qbench report uci`` shows it. In Python::

    table = qbench.load_table("uci")
    report = qbench.run(table, out="runs")
"""

__version__ = "0.1.0"
