"""One table for every experiment."""
