"""One training loop; each stage is a file that says what differs."""
