"""Does a response give an answer that can be read, right or wrong?"""

from __future__ import annotations

from megatron_longrl.data.answer import marked_answer, unmarked_answer
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.rewards.letters import chosen_letter
from megatron_longrl.rewards.options import options_of
from megatron_longrl.rewards.stated_letter import stated_letter


def is_well_formed(sample: RewardInput) -> bool:
    """Whether a response chooses one of the question's options, or, where it has none, says
    anything behind its thought. The form of a direct answer counts as that of a reasoned one."""
    marked = marked_answer(sample.response)
    given = unmarked_answer(sample.response) if marked is None else marked
    options = options_of(sample)
    if not options:
        return bool(given.strip())
    read = stated_letter if marked is None else chosen_letter
    return read(given, options) in options
