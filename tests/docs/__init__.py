"""What the pages promise: each name, example, picture and word in them holds."""
