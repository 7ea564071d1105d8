"""Other projects' tests and texts, run with llcuda in their place; fetched, never committed."""
