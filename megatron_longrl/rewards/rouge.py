"""ROUGE for free text: Lin, "ROUGE: a package for automatic evaluation of summaries", 2004."""

from __future__ import annotations

from megatron_longrl.data.answer import final_text

KINDS = {"rouge": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}
"""rouge-score's name of each reward."""


def rouge_reward(response: str, answer: str, kind: str = "rougeL") -> float:
    """F1 of the common subsequence (rougeL) or of words (rouge1) or pairs of words (rouge2).

    ``<answer>`` of the response counts; without one, the text after its thought. Words are
    rows of the letters a to z and digits: for other scripts this reward is 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer([kind], use_stemmer=False).score(answer, final_text(response))
    return float(scores[kind].fmeasure)
