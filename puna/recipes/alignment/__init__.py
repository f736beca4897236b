"""The loop that made Llama 2-Chat (arXiv 2307.09288, section 3): versions, each a row of stages.

`config.py` what is declared, `stages.py` what each stage does, `loop.py` that they go on where they
were, `measure.py` how good a version is, `report.py` the page that shows it.
"""
