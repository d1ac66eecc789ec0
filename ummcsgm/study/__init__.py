"""Several methods trained and compared on the same data."""
