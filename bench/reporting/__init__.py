"""What is made of the samples: figures, their targets, the charts and the pages."""
