"""The soak: everything that may happen to a proxy in a month, over and over for minutes, and what remains of it.

python -m bench.soak --minutes 10
"""
