"""Preferences collected from people: two answers side by side, one is picked and rated.

Llama 2 section 3.2.1 (arXiv 2307.09288): binary comparisons of answers from different models and
temperatures, with four degrees of preference and a safety label.
"""
