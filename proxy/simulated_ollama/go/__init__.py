"""The parts of Go's net/http server and encoding/json that a client can notice."""
