"""Additions to asyncio: socket options, time limits across sleep, a coroutine driven step by step."""
