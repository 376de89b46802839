"""Go's net/http server and encoding/json, as far as their behaviour shows on the wire."""
