"""What measures the proxy against others that do the same work, on one machine and in one run.

`make bench` runs it all, `make bench QUICK=1` a short form of it, `make bench-guard` counts instructions.
docs/performance.md tells what each figure means.
"""
