"""Puna: the whole Llama 2 system, from text to talking."""

__version__ = "0.1.0"
