"""Speed, measured: scripts, not tests. Each compares in one run and prints ratios beside targets.

``python -m tests.bench.overhead`` (and ``throughput``, ``drain``, ``latency``, ``history``,
``imports``) run from the root of the checkout; ``--quick`` takes a few seconds, ``--rounds`` makes
the medians steadier. They always exit 0: a missed target is printed, not hidden.
"""
