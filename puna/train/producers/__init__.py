"""Data for fine-tuning out of a model's own answers, on `train.sampling` and `resumable.py`."""
