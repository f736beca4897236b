"""EleutherAI's lm-eval over Puna's engine."""
