"""lm-eval's own command line, with `--model puna`: `python -m puna.evaluate.harness ...`."""

from lm_eval.__main__ import cli_evaluate

import puna.evaluate.harness.model  # noqa: F401  (puts it into the registry)

if __name__ == "__main__":
    cli_evaluate()
