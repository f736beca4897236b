"""How good a model is, and how much of it a quantized copy keeps."""
