"""What the program does in a real tailnet; `make test-tailnet` runs these, `make test` doesn't."""
