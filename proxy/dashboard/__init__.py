"""`dashboard`: the owner's page, its web server on loopback, and what the page shows."""
