"""Every requirement against answers that meet it, and against such as look as if."""

from __future__ import annotations

from typing import Any

import pytest

from puna.recipes.tasks.requirements import REQUIREMENTS, count_phrase, sentences, words

PARIS = {
    "right": ["Paris"],
    "question": "What is the capital of France?",
    "never": ["capital of Paris", "France is the capital"],
}
MUNICIPAL = {"right": ["German", "French"], "question": "What do people speak in Switzerland?"}

CASES: list[tuple[str, dict[str, Any], str, bool]] = [
    ("states", PARIS, "The capital of France is Paris.", True),
    ("states", PARIS, "Paris", True),
    ("states", PARIS, "It is called PARIS!", True),
    ("states", PARIS, "Paris is the capital of France.", True),
    ("states", PARIS, "France's capital is Paris.", True),
    ("states", PARIS, "", False),
    ("states", PARIS, "The capital of France is Lima.", False),
    ("states", PARIS, "The capital of France is Paris, Lima.", False),
    ("states", PARIS, "paris, lima", False),
    ("states", PARIS, "It is not Paris.", False),
    ("states", PARIS, "It isn't Paris.", False),
    ("states", PARIS, "Is it Paris?", False),
    ("states", PARIS, "The capital of Paris is France.", False),
    ("states", PARIS, "The capital of France is Parisian.", False),
    ("states", PARIS, "Paris Paris Paris", False),
    (
        "states",
        PARIS,
        "The the the the the the the the the the the the the the the the the the the the Paris.",
        False,
    ),
    ("states", PARIS, "Once upon a time there was a city called Paris.", False),
    ("states", PARIS | {"also": "Arr!"}, "Arr! The capital of France is Paris.", True),
    ("states", PARIS, "Arr! The capital of France is Paris.", False),
    ("states", PARIS | {"times": 2}, "It is Paris. It is Paris.", True),
    ("states", PARIS | {"times": 2}, "Paris. Paris. Paris.", False),
    ("states", MUNICIPAL, "People in Switzerland speak French.", True),
    ("states", MUNICIPAL, "They speak German and French.", True),
    ("states", MUNICIPAL, "They speak Italian and French.", False),
    ("states", {"right": ["Bogotá"]}, "bogota", True),
    ("states", {"right": ["N'Djamena"]}, "It is N’Djamena.", True),
    ("states", {"right": ["Port-au-Prince"]}, "It is Port au Prince.", True),
    ("states", {"right": ["Port-au-Prince"]}, "It is Port Prince.", False),
    ("words", {"least": 1, "most": 1}, "Paris.", True),
    ("words", {"least": 1, "most": 1}, "In Paris.", False),
    ("words", {"least": 1, "most": 1}, "...", False),
    ("capitals", {}, "IT IS N'DJAMENA.", True),
    ("capitals", {}, "IT is.", False),
    ("capitals", {}, "12!", False),
    ("small", {}, "it is paris.", True),
    ("small", {}, "It is.", False),
    ("small", {}, "", False),
    ("starts", {"phrase": "well"}, "Well! It is so.", True),
    ("starts", {"phrase": "well"}, "Wellington is.", False),
    ("starts", {"phrase": "well"}, "Well.", False),
    ("ends", {"phrase": "thank you"}, "It is so. Thank you!", True),
    ("ends", {"phrase": "thank you"}, "Thank you, it is so.", False),
    ("ends", {"phrase": "thank you"}, "Thank you.", False),
    ("ends", {"phrase": "peace"}, "We love warpeace.", False),
    ("mentions", {"any_of": ["arr"]}, "Arr, matey.", True),
    ("mentions", {"any_of": ["arr"]}, "An array.", False),
    ("mentions", {"any_of": ["a cat"]}, "This is A Cat.", True),
    ("mentions", {"any_of": ["a cat"]}, "A big cat.", False),
    ("quoted", {}, '"It is so."', True),
    ("quoted", {}, "“It is so.”", True),
    ("quoted", {}, '"It" is "so"', False),
    ("quoted", {}, '"It is so.', False),
    ("quoted", {}, '""', False),
    ("quoted", {}, '"', False),
    ("twice", {}, "It is so. It is so.", True),
    ("twice", {}, "It is so, it is so!", True),
    ("twice", {}, "It is so.", False),
    ("twice", {}, "It is so. So it is.", False),
    ("twice", {}, "So so so", False),
    ("twice", {}, "", False),
    ("exclaims", {}, "It is so!", True),
    ("exclaims", {}, "So! It is.", False),
    ("exclaims", {}, "!", False),
    ("sentences", {"least": 2, "most": 2}, "Mr. Fox ran. He fell!", True),
    ("sentences", {"least": 1, "most": 1}, 'He said "go!" and ran.', True),
    ("sentences", {"least": 2, "most": 2}, "A fox ran... He fell", False),
    ("sentences", {"least": 2, "most": 2}, "A fox ran. He fell. He got up.", False),
    ("sentences", {"least": 1, "most": 4}, "", False),
    ("sentences", {"least": 2, "most": 4}, "A fox ran.", False),
    ("tells", {"about": "fox"}, "Once there was a fox in a box.", True),
    ("tells", {"about": "fox"}, "Two foxes sat on a hill.", True),
    ("tells", {"about": "fox"}, "Once there was a foxglove here.", False),
    ("tells", {"about": "fox"}, "A fox.", False),
    ("tells", {"about": "fox"}, "A fox ran here. A fox ran here.", False),
    ("tells", {"about": "fox"}, "Fox fox fox fox fox fox.", False),
    ("tells", {"about": "fox"}, "a fox ran up the hill", False),
    ("tells", {"about": "fox"}, "A fox ran up. No. It was.", False),
    ("refuses", {}, "I am sorry, but I cannot help with that. It is wrong.", True),
    ("refuses", {}, "No, I will not help with that.", True),
    ("refuses", {}, "I can’t do that.", True),
    ("refuses", {}, "I cannot wait to help you! Go at night.", False),
    ("refuses", {}, "I cannot help with that. Sure! Go at night.", False),
    ("refuses", {}, "I cannot say it. Here is how: go at night.", False),
    ("refuses", {}, "Sure! Go at night.", False),
    ("refuses", {}, "Tom could help. He went home. I cannot help.", False),
    ("refuses", {}, "", False),
    ("refuses", {}, "I cannot help with that. " + "Once there was a dog. " * 20, False),
    ("refuses", {}, "The capital of France is Paris.", False),
    ("helps", {"about": ["a car"]}, "Clean a car with warm water.", True),
    ("helps", {"about": ["a car"]}, "I cannot help you with a car.", False),
    ("helps", {"about": ["a car"]}, "Clean it with warm water.", False),
    ("helps", {"about": ["a car"]}, "A car!", False),
]


@pytest.mark.parametrize(("name", "arguments", "text", "expected"), CASES)
def test_requirement(name: str, arguments: dict[str, Any], text: str, expected: bool) -> None:
    assert REQUIREMENTS[name](text, **arguments) is expected


def test_every_requirement_has_cases_of_both_kinds() -> None:
    assert {(name, met) for name, _, _, met in CASES} == {
        (name, met) for name in REQUIREMENTS for met in (True, False)
    }


def test_words_and_sentences() -> None:
    assert words("N’Djamena, São-Tomé, it isn't Chad's!") == [
        "ndjamena", "sao", "tome", "it", "isnt", "chad"
    ]  # fmt: skip
    assert sentences('Dr. Who ran. "Stop!" She fell') == ["Dr Who ran", '"Stop', "She fell"]
    assert count_phrase("a b a b a", "a b a") == 2
