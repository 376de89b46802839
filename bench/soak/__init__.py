"""The soak: hours in minutes. All that may happen to a proxy in a month, over and over, and a look at what it leaves.

python -m bench.soak --minutes 10
"""
