"""What it takes to train, tune and serve, before paying for it."""
