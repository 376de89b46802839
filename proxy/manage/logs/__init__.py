"""`logs`: reads the logs over all their files, and shows or sums up their lines."""
