"""The Mac: where things are kept, launchd and its jobs, the Python that runs, and steps that change any of it."""
