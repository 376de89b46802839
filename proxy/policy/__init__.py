"""Who may ask for what, and what is answered otherwise. Pure: values in, values out."""
