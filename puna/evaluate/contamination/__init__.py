"""How much of an evaluation stands in training text, and whether that has helped."""
