"""Named runs: one function each."""
