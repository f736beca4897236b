"""A network on several devices. Needs torch.distributed; training and generation both build on it."""
