"""What a model has answered so far, kept in a file: a run goes on with the next question."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lm_eval.api.model import LM, hash_args


class Answers:
    """A file of answers, a line each, by the hash of what was asked; only ever added to.

    What is asked several times, to be drawn anew, has an answer for each. lm-eval's models tell of
    each answer by `add_partial`. A last line that was cut off counts as not written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, list[Any]] = {}
        self._file: TextIO | None = None
        self.on_answer: Callable[[], None] = lambda: None

    def __enter__(self) -> Answers:
        self._file = self.path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(self._file)
        except BlockingIOError:
            self._file.close()
            raise ValueError(f"another process is at work in {self.path.parent}") from None
        except BaseException:
            self._file.close()
            raise
        return self

    def _read(self, file: TextIO) -> None:
        """Reads what is there, and takes off a line that was cut off."""
        whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                key, answer = json.loads(line)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.path} line {number} is damaged: {error}") from None
            self._answers.setdefault(key, []).append(answer)
        file.truncate(len(whole + newline))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()

    def add_partial(self, kind: str, asked: Iterable[Any], answer: Any) -> None:
        """Keeps an answer; lm-eval's name for that."""
        assert self._file is not None
        key = hash_args(kind, asked)
        self._answers.setdefault(key, []).append(answer)
        self._file.write(json.dumps([key, answer]) + "\n")
        self._file.flush()
        self.on_answer()

    def find(self, kind: str, many: Sequence[Sequence[Any]]) -> list[Any]:
        """The answer to each that was asked, None where there is none."""
        times: Counter[str] = Counter()
        found = []
        for asked in many:
            key = hash_args(kind, asked)
            answers = self._answers.get(key, [])
            found.append(answers[times[key]] if times[key] < len(answers) else None)
            times[key] += 1
        return found

    def __len__(self) -> int:
        return sum(map(len, self._answers.values()))


class Answered(LM):
    """A model that is asked only what it has not answered."""

    def __init__(self, model: LM, answers: Answers) -> None:
        super().__init__()
        self.model, self.answers = model, answers
        self.on_begin: Callable[[int], None] = lambda count: None  # so many are to be asked
        model.set_cache_hook(answers)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """See `LM`."""
        return [tuple(answer) for answer in self._ask("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """See `LM`."""
        return self._ask("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """See `LM`."""
        return self._ask("generate_until", requests)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """See `LM`."""
        return self.model.apply_chat_template(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """See `LM`."""
        return self.model.tokenizer_name

    def _ask(self, kind: str, requests: list[Any]) -> list[Any]:
        answers = self.answers.find(kind, [request.args for request in requests])
        missing = [index for index, answer in enumerate(answers) if answer is None]
        if missing:
            self.on_begin(len(missing))
            asked = [requests[index] for index in missing]
            found = getattr(self.model, kind)(asked, disable_tqdm=True)
            for index, answer in zip(missing, found, strict=True):
                answers[index] = answer
        return answers
