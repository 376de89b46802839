"""What Go and Ollama's own types read of a corpus of bodies, names, forms and zstd, recorded as data.

`make go-json` writes `readings.jsonl`; tests compare this proxy's reader with it, and need no Go.
"""
