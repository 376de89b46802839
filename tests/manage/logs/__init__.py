"""`logs`: what it reads, counts and shows."""
