"""Runs the program's text; executed by the sandbox's own interpreter, which has no Puna.

Its verdict goes to a pipe with a word that the program is not told: a program that leaves early
with status 0, before its tests, has not passed.
"""

from __future__ import annotations

import os
import sys

PATH = "/tmp/program.py"


def main() -> None:
    pipe, word = int(sys.argv[1]), sys.argv[2]
    sys.argv[:] = [PATH]
    os.set_inheritable(pipe, False)
    me, verdict = os.getpid(), "passed"
    try:
        with open(PATH, encoding="utf-8") as file:
            code = compile(file.read(), PATH, "exec")
        exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
    except BaseException as error:
        import traceback

        traceback.print_exc()
        name, said = type(error).__name__, str(error).split("\n", 1)[0][:200]
        verdict = f"{name}: {said}" if said else name
    if os.getpid() != me:  # a child that the program forked has no say
        os._exit(1)
    os.write(pipe, f"{word} {verdict}".encode("utf-8", "replace"))
    if verdict != "passed":
        sys.exit(1)


if __name__ == "__main__":
    main()
