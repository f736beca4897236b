"""Instructions whose answers a program can check: the ground truth of the small alignment.

Questions about countries, their form, short stories, refusals and personas, with a score from 0 to
1 that is a function of the task and the text. All of it is *ours*: the paper has people judge.
"""
