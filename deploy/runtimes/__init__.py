"""One runtime a file."""
