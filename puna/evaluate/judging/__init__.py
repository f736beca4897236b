"""Chat evaluation: models answer dialogs, and a judge says whose answers are better."""
