"""The owner's commands. `status`, `explain` and `--check` are here; the others have folders of their own."""
