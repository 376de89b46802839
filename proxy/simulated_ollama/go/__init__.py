"""Go's net/http server and its encoding/json, as far as their habits show on the wire."""
