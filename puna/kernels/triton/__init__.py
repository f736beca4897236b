"""GPU kernels, one a file; what they compute is defined in plain torch beside this folder."""
