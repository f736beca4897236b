"""How safe a model's text is: toxicity, sentiment by group, truth, and what it declines."""
