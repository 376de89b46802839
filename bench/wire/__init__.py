"""Both ends of the wire: the requests and clients of the benchmark, and its upstream."""
