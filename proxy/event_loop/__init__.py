"""Additions to asyncio: socket options, time limits that don't count sleep, coroutines in steps, spread work."""
