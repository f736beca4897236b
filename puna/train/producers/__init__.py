"""Data for fine-tuning from a model's own answers, on `train.sampling` and `formats.resumable`."""
