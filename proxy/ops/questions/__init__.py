"""The questions that `verify` asks a proxy, from the Mac or from any client of it.

They need the standard library of Python 3.9 and nothing else, so that `verify --client-script` can print them as one
file that runs on a laptop as it is: no module here imports anything of ours outside this package, and no two define the
same name.
"""
