"""GPU kernels. Each file holds one; what it computes is defined in plain torch beside this folder."""
