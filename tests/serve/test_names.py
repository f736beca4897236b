"""Names that models and adapters are served under."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.serve.names import Asked, adapters_asked, models_asked


def test_models_go_by_their_own_names_or_given_ones(tmp_path: Path) -> None:
    file, folder = tmp_path / "tiny.q4.gguf", tmp_path / "Llama=2"
    file.touch()
    folder.mkdir()
    arguments = ["cria", "TheBloke/Llama-2-7B-GPTQ@main", f"gpt-4={file}", str(file), "a/b=cria"]
    assert models_asked(arguments) == [
        Asked("cria", "cria"),
        Asked("TheBloke/Llama-2-7B-GPTQ@main", "TheBloke/Llama-2-7B-GPTQ@main"),
        Asked("gpt-4", str(file)),
        Asked("tiny.q4", str(file)),
        Asked("a/b", "cria"),
    ]
    with pytest.raises(ValueError, match="cannot be served as 'Llama=2'"):
        models_asked([str(folder)])


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc/x", "a/../b", "a//b", "a b", "a\n", "é"])
def test_names_that_could_be_paths_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be served as"):
        models_asked([f"{name}=cria"])
    with pytest.raises(ValueError, match="cannot be served as"):
        adapters_asked([f"{name}=adapter"], models_asked(["cria"]))


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="served as cria"):
        models_asked(["cria", "cria=other"])
    with pytest.raises(ValueError, match="served as cria"):
        adapters_asked(["cria=adapter"], models_asked(["cria"]))


def test_adapters_say_for_which_of_several_models_they_are() -> None:
    one, two = models_asked(["cria", "also=cria"]), models_asked(["cria", "b=other"])
    assert adapters_asked(["tales=path:0.5"], one) == [Asked("tales", "path:0.5", "cria")]
    assert adapters_asked(["tales@b=path"], two) == [Asked("tales", "path", "b")]
    for arguments, words in (
        (["tales=path"], "write tales@cria=path"),
        (["tales@c=path"], "no model is served as c"),
        (["path"], "write NAME=ADAPTER"),
        (["tales="], "write NAME=ADAPTER"),
    ):
        with pytest.raises(ValueError, match=words):
            adapters_asked(arguments, two)
