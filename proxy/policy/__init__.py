"""Who may ask for what, and the responses to everything else. Pure: values in, values out."""
