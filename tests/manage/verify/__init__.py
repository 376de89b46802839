"""`verify`: its questions, from a laptop and on the Mac."""
