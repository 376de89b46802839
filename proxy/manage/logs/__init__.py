"""`logs`: reads a log across all its rotated files, and shows its lines or a summary."""
