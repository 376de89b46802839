"""`dashboard`: the owner's page, its web server on loopback, and the index of the access log that it reads."""
