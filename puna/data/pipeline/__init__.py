"""From raw text to clean, tokenized shards: datatrove's steps and ours, in one table."""
