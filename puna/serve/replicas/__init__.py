"""Several engines for one model, each a process, on Ray Serve; the API stays in one."""
