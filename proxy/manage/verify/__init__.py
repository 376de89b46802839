"""`verify`: proves that a running proxy does what it promises. The checks of the Mac itself are here."""
