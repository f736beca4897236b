"""A network on several devices, by torch.distributed; for generation, and for training."""
