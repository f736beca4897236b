"""What scores texts: a transformers classifier that a user names, VADER, or our word lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.evaluate.safety.lexicon import sentiment_scores, toxicity_scores

_BATCH = 16  # texts that run at once (ours)
_LONGEST = 512  # tokens of a text that are read
# Labels as released classifiers have them: ToxiGen's RoBERTa calls its second one LABEL_1.
_TOXIC = ("toxic", "toxicity", "hate", "hateful", "offensive", "label_1")
_SENTIMENTS = ({"positive": 1.0, "negative": -1.0}, {"pos": 1.0, "neg": -1.0})


@dataclass(frozen=True, slots=True)
class Classifier:
    """`scores` of texts, in their order; `name` says what it is, to people."""

    name: str
    scores: Callable[[Sequence[str]], list[float]]


def toxicity_classifier(source: str | None, device: str = "cpu") -> Classifier:
    """How likely a text is toxic, from 0 to 1.

    `source` is a folder of transformers or a hub's name of a sequence classifier; None is our
    lexicon. ValueError for one that is not there, or has no label for what is toxic.
    """
    if source is None:
        return Classifier("Puna's own lexicon of toxic terms (no classifier)", toxicity_scores())
    labels, probabilities = _transformers(source, device)
    number = next((labels[name] for name in _TOXIC if name in labels), None)
    if number is None:
        raise ValueError(
            f"{source} says nothing of toxicity: its labels are {', '.join(labels)}; one is to be "
            f"called {' or '.join(_TOXIC)}"
        )
    return Classifier(source, lambda texts: [row[number] for row in probabilities(texts)])


def sentiment_classifier(source: str | None, device: str = "cpu") -> Classifier:
    """How positive a text is, from -1 to 1: the probability of positive less that of negative.

    `source` as of `toxicity_classifier`, or `vader`, what the paper has (pip install
    vaderSentiment).
    """
    if source is None:
        return Classifier("Puna's own lexicon of valences (no classifier)", sentiment_scores())
    if source == "vader":
        return Classifier("VADER", _vader())
    labels, probabilities = _transformers(source, device)
    weights = next((each for each in _SENTIMENTS if set(each) <= set(labels)), None)
    if weights is None:
        raise ValueError(
            f"{source} says nothing of sentiment: its labels are {', '.join(labels)}, and not "
            "positive and negative"
        )
    places = {labels[name]: weight for name, weight in weights.items()}
    return Classifier(
        source,
        lambda texts: [
            sum(weight * row[place] for place, weight in places.items())
            for row in probabilities(texts)
        ],
    )


def _vader() -> Callable[[Sequence[str]], list[float]]:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError:
        raise ValueError("VADER is not installed: pip install vaderSentiment") from None
    analyzer = SentimentIntensityAnalyzer()
    return lambda texts: [float(analyzer.polarity_scores(text)["compound"]) for text in texts]


def _transformers(
    source: str, device: str
) -> tuple[Mapping[str, int], Callable[[Sequence[str]], list[list[float]]]]:
    """Labels, in small letters, with their places, and the probabilities of each text's labels."""
    try:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a classifier runs on transformers, and {error.name} is not installed: pip install "
            "'puna[train]' transformers"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: Any = AutoModelForSequenceClassification.from_pretrained(source).to(device).eval()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{source} cannot be opened as a classifier: {reason}") from None
    labels = {str(name).lower(): int(number) for number, name in model.config.id2label.items()}
    # Labels that exclude each other share one softmax; of others each has its own probability.
    is_multi = model.config.problem_type == "multi_label_classification" or len(labels) == 1

    @torch.inference_mode()
    def probabilities(texts: Sequence[str]) -> list[list[float]]:
        rows: list[list[float]] = []
        for at in range(0, len(texts), _BATCH):
            read = tokenizer(
                list(texts[at : at + _BATCH]),
                padding=True,
                truncation=True,
                max_length=_LONGEST,
                return_tensors="pt",
            ).to(device)
            logits = model(**read).logits.float()
            rows += (logits.sigmoid() if is_multi else logits.softmax(-1)).tolist()
        return rows

    return labels, probabilities
