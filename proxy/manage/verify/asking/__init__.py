"""How questions are asked and their results reported. Needs Python 3.9 and its standard library only."""
