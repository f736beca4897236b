"""The runner of CPUs: weights in tiles, kept for the next start, and the native step over them."""
