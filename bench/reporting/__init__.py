"""From samples to results: figures, their targets, the charts and the pages."""
