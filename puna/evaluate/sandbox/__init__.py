"""Runs programs that a model wrote where they can do no harm: processes in namespaces of Linux."""
