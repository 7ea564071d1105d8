"""Long random runs: `make stress`. A small slice of each runs with the other tests."""
