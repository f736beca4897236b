"""The runner of GPUs: the network with packed weights, compiled and captured; also in shares."""
