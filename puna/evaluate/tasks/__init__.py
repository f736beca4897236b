"""What can be evaluated: a row a benchmark, whose definition is lm-eval's."""
