"""What a request asks for: bodies, forms, zstd and model names, next to what Go reads."""
