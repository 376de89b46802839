"""`verify`: proves that a running proxy does what it promises."""
