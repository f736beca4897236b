"""How weights are stored: plain floats and blocks of small integers."""
