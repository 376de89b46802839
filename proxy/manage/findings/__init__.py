"""What can be wrong: one check for each thing, and a table of when each runs and how severe it is there."""
