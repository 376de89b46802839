"""Additions to asyncio: socket options, time limits that don't count sleep, a coroutine driven step by step."""
