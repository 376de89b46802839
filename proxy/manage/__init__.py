"""The owner's other commands, without folders of their own."""
