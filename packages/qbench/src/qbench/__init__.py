"""The papers on quadratic networks, rerun: every claim beside its measurement.

``qbench run uci`` trains a paper's table and reports it. One line says how: a *table*
(:mod:`qbench.table`) becomes *blocks* (:mod:`qbench.block`), the one *loop* (:mod:`qbench.loop`)
trains them, their *results* (:mod:`qbench.trial`) are files, and the *report*
(:mod:`qbench.report.numbers`) reads these alone.
"""

__version__ = "0.1.0"
