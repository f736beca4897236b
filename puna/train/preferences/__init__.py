"""Stages on pairs of answers: reward models and direct preference optimization."""
