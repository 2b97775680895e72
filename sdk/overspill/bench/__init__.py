"""Benchmarks against peers: both sides in one run, alternating, on models made on the spot.

`overspill bench engine` runs `suite.run`; see `engine.py` for the list of what is measured.
"""
