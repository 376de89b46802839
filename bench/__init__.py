"""Measures the proxy next to others that do the same work, on one machine and in one run.

`make bench` runs everything, `make bench QUICK=1` a short form of it, `make bench-guard` counts instructions.
docs/performance.md explains each figure.
"""
