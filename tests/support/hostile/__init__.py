"""Hostile clients: the attacks, who sends them, a crowd, and an upstream that accepts no doubtful byte."""
