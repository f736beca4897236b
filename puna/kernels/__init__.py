"""Native code for what numpy is too slow at. Nothing needs it: each kernel has its definition."""
