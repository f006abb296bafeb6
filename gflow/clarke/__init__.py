"""Clarke subdifferentials at kinks."""
