"""What asyncio leaves to its users: socket options, time limits across sleep, a coroutine driven step by step."""
