"""`logs`: reads a log across all its rotated files, and shows its lines, a summary or missing numbers."""
