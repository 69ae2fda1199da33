"""Responses without ``<answer>`` and ``\\boxed``, as models write them that were not asked for."""

from __future__ import annotations

import time

import pytest

from megatron_longrl.rewards.registry import REWARDS
from tests.unit.rewards.samples import make_sample

QUESTION = (
    "What does the man do after he opens the door?\n"
    "A. He leaves\nB. He sits down\nC. He picks up the red cup\nD. He waves"
)


def score(kind: str, response: str, answer: str, question: str = "How?") -> float:
    sample = make_sample(response, answer=answer, question=question, metadata={})
    return REWARDS.find(kind).compute(sample, {"reward_tolerance": 1e-4})


CHOICE_RIGHT = [
    "B",
    "B.",
    "(B)",
    "**B**",
    "**B.**",
    "B. He sits down",
    "**B. He sits down**",
    "He sits down.",
    "Option B",
    "The answer is B.",
    "The answer is **B**.",
    "The correct answer is **B. He sits down**.",
    "The correct answer is: (B) He sits down.",
    "Answer: B",
    "**Answer:** B",
    "**Final Answer:** B",
    "### Final Answer\nB",
    "### Final Answer:\n\n**B. He sits down**",
    "The correct answer is:\n\n**B. He sits down**",
    "Therefore, B.",
    "So the correct option is (B).",
    "Thus, the best choice is option B.",
    "I would choose B.",
    "The answer is He sits down.",
    "The final answer is B, since he is seen in the chair.",
    "<think>A looks right.</think>B",
    "<think>A looks right.</think>\n\nThe answer is B.",
    "After opening the door, the man walks to the chair. The answer is B.",
    "In the video, a man opens a door and enters. He then walks over to the chair.\n\nB",
    "In the video, a man opens a door and enters. He then walks over to the chair.\n\n**B**",
    "A man opens the door. I can see that he walks to the chair. Therefore, the answer is B.",
    "I can see the man walk to the chair, so the answer is B.",
    "I think the answer is B.",
    "Based on the video, the man sits down after he opens the door. So the answer is B.",
    "Based on the video, the most likely answer is B. He sits down.",
    "Let's go through the options:\n\nA. He leaves - this is wrong, he stays.\n"
    "B. He sits down - this is what the frames show.\n"
    "C. He picks up the red cup - no cup is seen.\nD. He waves - not seen.\n\n"
    "Therefore, the correct answer is B.",
    "Options:\nA. He leaves\nB. He sits down\nC. He picks up the red cup\nD. He waves\n\nAnswer: B",
    "B. He sits down\n\nExplanation: Option A is wrong because he stays in the room. "
    "Option C is wrong because no cup is seen.",
    "The answer is B.\n\nIn the video, the man walks in and takes a seat. Option A is incorrect, "
    "as he does not leave.",
    "The correct answer is B. Options A, C and D do not match what is shown.",
    "**Step 1:** The man opens the door.\n**Step 2:** He walks to the chair.\n\n**Answer: B**",
    "Option A shows leaving. Option D shows waving. Neither happens. The correct answer is B.",
    "Looking at the frames, option B is correct.",
    "The man opens the door and then sits on the chair.\n\n(B) He sits down",
    "答案是B。",
    "根据视频，男子开门后坐下了。因此，正确答案是B。",
    "The answer is B.<think>Or is it",
]
CHOICE_WRONG = [
    "",
    "A or B",
    "B or C",
    "Either A or B.",
    "The answer is either B or C.",
    "The answer is A or B.",
    "The answer could be B.",
    "It could be A, but B is possible too.",
    "I am not sure, maybe A, maybe B.",
    "Maybe B.",
    "I'm not sure, but the answer is maybe B.",
    "I am not sure whether the answer is B.",
    "If he stayed, the answer is B.",
    "Is the answer B?",
    "The answer is not B.",
    "I do not think that the answer is B.",
    "The options are A, B, C and D.",
    "A. He leaves\nB. He sits down\nC. He picks up the red cup\nD. He waves",
    "A, B, C, D",
    "Option A shows a man who leaves. Option B shows a man who sits down.",
    "Both A and B are right.",
    "All of the above.",
    "None of them.",
    "The answer is A.",
    "A",
    "C. He picks up the red cup",
    "The answer is A. He leaves the room, and B is wrong.",
    "The answer is B. Actually, the answer is C.",
    "The answer is B. Wait, it is C.",
    "The answer is B. Or maybe C.",
    "The answer is B. However, C could also be right.",
    "The answer is B. Alternatively, option C is possible.",
    "Answer: B\nAnswer: C",
    "B\n\nC",
    "I'm sorry, but I can't answer that.",
    "I cannot see the video, so I cannot say.",
    "He sits down or he leaves.",
    "The man wears a shirt with the letter B on it and leaves through the door.",
    "This is B-roll of a man.",
    "The man picked B from the shelf and left through the door.",
    "<think>The answer is B.",
    "<think>The answer is B.</think>",
    "<think>The answer is B.</think>The answer is A.",
    "Because he wanted to.",
    "Both the first and the last one.",
    "BBBBBBBB",
]
NOT_A = [
    "A man walks in.",
    "A man walks in and sits down on a chair.",
    "A man walks in. He sits down.",
    "I see a man.",
    "In the video, a man opens a door. A woman waits.",
    "The answer is a man who waits.",
    "A",
    "So a man it is.",
    "A: he leaves. B: he sits down.",
    "A man, a plan.",
]

EXACT_RIGHT = [
    "Paris",
    "paris.",
    "**Paris**",
    '"Paris"',
    "The answer is Paris.",
    "The answer is **Paris**.",
    "Answer: Paris",
    "**Answer:** Paris",
    "### Final Answer\n\nParis",
    "The correct answer is: Paris",
    "It is Paris.",
    "Therefore, Paris.",
    "So the answer is Paris.",
    "The tower in the third frame is well known. The answer is Paris.",
    "The tower in the third frame is well known.\n\nParis",
    "Paris, because the tower is seen.",
    "The answer is Paris, since the tower is seen.",
    "The final answer is Paris, not Rome.",
    "Paris\n\nExplanation: the tower is seen in the third frame.",
    "<think>Rome?</think>Paris",
]
EXACT_WRONG = [
    "",
    "Rome",
    "Paris or Rome",
    "Either Paris or Rome.",
    "The answer is Paris or Rome.",
    "Maybe Paris.",
    "I am not sure, maybe Paris, maybe Rome.",
    "The answer is not Paris.",
    "Not Paris",
    "Is the answer Paris?",
    "The answer is Paris. Actually, the answer is Rome.",
    "The answer is Rome, not Paris.",
    "Paris\nRome",
    "Paris, Rome, Berlin",
    "The video could be from Paris.",
    "The video compares Paris and Rome.",
    "I'm sorry, I can't tell from the video.",
    "<think>The answer is Paris.",
    "<think>Paris</think>",
    "The answer is Paris. Or Rome.",
]

NUMERIC_RIGHT = [
    "7",
    "7.",
    "**7**",
    "The answer is 7.",
    "The answer is **7**.",
    "Answer: 7",
    "**Final Answer:** 7",
    "### Final Answer\n7",
    "There are 7 people in the video.",
    "7 people",
    "Therefore, there are 7 people.",
    "In the first 10 seconds, 3 people enter. Then 4 more come. The answer is 7.",
    "In the first 10 seconds, 3 people enter. Then 4 more come. So the answer is 3 + 4 = 7.",
    "First, 3 people enter, then 4 more.\n\n7",
    "First, 3 people enter, then 4 more.\n\n**7**",
    "First, 3 people enter, then 4 more.\nTherefore, there are 7 people in total.",
    "1. 3 people enter.\n2. 4 more people enter.\n\n**Answer:** 7 people",
    "The answer is 7, because 3 people enter and 4 more follow.",
    "The answer is 7 (3 men and 4 women).",
    "The correct answer is 7, not 8.",
    "<think>6 or 8</think>7",
    "The final answer is $7$.",
    "The answer is approximately 7 meters, which is about 23 feet.",
    "At 0:12 there are 3 people, at 0:20 there are 7. Final answer: 7",
]
NUMERIC_WRONG = [
    "",
    "8",
    "6 or 7",
    "7 or 8 people",
    "The answer is 7 or 8.",
    "The answer is between 6 and 7.",
    "The answer is 6 to 7.",
    "There are 7 people at first and 9 in the end.",
    "At 0:07 there are 3 people.",
    "In frame 7 there are 3 people.",
    "First 7 people enter. Then 2 leave.",
    "The answer is 5. There were 7 at first.",
    "The answer is not 7.",
    "It is not 7.",
    "I am not sure, maybe 7.",
    "Maybe 7, maybe 8.",
    "Is the answer 7?",
    "The answer is 7. Wait, the answer is 8.",
    "The answer is 7. Actually, it is 8.",
    "7\n8",
    "There are several people.",
    "I'm sorry, but I can't count the people in this video.",
    "<think>The answer is 7.",
    "<think>7</think>",
    "1. 3\n2. 4\n3. 7",
    "The answer is more than 7.",
    "The answer is at least 7.",
]

MATH_RIGHT = [
    "12",
    "$12$",
    "The answer is 12.",
    "The answer is $12$.",
    r"The answer is \(12\).",
    r"The final answer is $\frac{24}{2}$.",
    "Answer: 12",
    "**Answer:** $12$",
    "x = 12",
    "We add 5 and 7, which gives 12. The answer is 12.",
    "We have 5 + 7 = 12.\n\nTherefore, the answer is $12$.",
    "First 5, then 7.\n\n### Final Answer\n$12$",
    "First 5, then 7.\n\n$12$",
    "<think>5 + 6</think>12",
]
MATH_WRONG = [
    "",
    "13",
    "The answer is 13.",
    "12 or 13",
    "The answer is 12 or 13.",
    "The answer is not 12.",
    "Maybe 12.",
    "It is either 12 or 13.",
    "We have 5, then 7, then 12, then 19.",
    "We start at 12 and end at 19.",
    "The answer is 12. Wait, the answer is 13.",
    "I cannot solve this.",
    "<think>The answer is 12.",
    "<think>12</think>",
]

TEMPORAL_RIGHT = [
    "12-20",
    "12 s to 20 s",
    "[12, 20]",
    "**12.0 - 20.0**",
    "0:12 - 0:20",
    "From 12 to 20 seconds.",
    "The event happens from 12 s to 20 s.",
    "The man opens the door between 12 and 20 seconds.",
    "The given query happens in 12.0 - 20.0 seconds.",
    "The answer is 12-20.",
    "Answer: [12, 20]",
    "**Answer:** from 0:12 to 0:20",
    "The man sits from 0 to 5 s. He then opens the door. The answer is 12-20 s.",
    "First he sits (0 s to 5 s), then he opens the door.\n\n### Final Answer\n12 s - 20 s",
    "First he sits (0 s to 5 s), then he opens the door.\n\n12 s - 20 s",
    'He opens the door.\n```json\n{"start": 12, "end": 20}\n```',
    "The event starts at 12 s and ends at 20 s.",
    "The event starts at 12 s. It ends at 20 s.",
    "Start: 0:12\nEnd: 0:20",
    "<think>0-5</think>12-20",
    "In the video, 2 men open the door from 12 s to 20 s, because they want to leave.",
]
TEMPORAL_WRONG = [
    "",
    "30-40",
    "The event starts at 12 s.",
    "12-20 or 30-40",
    "The answer is 12-20 or 0-5.",
    "Either 12 to 20 s or 30 to 40 s.",
    "The man sits from 12 to 20 s. He waves from 30 to 40 s.",
    "The answer is not 12-20.",
    "Maybe from 12 to 20 s.",
    "The answer is 12-20. Wait, the answer is 30-40.",
    "The event is not shown in the video.",
    "I'm sorry, I can't find the event.",
    "<think>The answer is 12-20.",
    "<think>12-20</think>",
]

ORDERING_RIGHT = [
    "B, A, C",
    "BAC",
    "B -> A -> C",
    "**B, A, C**",
    "The correct order is B, A, C.",
    "The correct order is: B → A → C",
    "The answer is B-A-C.",
    "Answer: BAC",
    "**Answer:** B, A, C",
    "### Final Answer\nB, A, C",
    "The man opens the door, sits down, and waves. So the correct order is B, A, C.",
    "The man opens the door, sits down, and waves.\n\nB, A, C",
    "The man first opens the door (B), then sits down (A).\n\nTherefore, the order is B → A → C.",
    "First the door is opened. The chronological order of the events is: B, A, C.",
    "Therefore, B, A, C.",
    "The correct order is B, A, C, because the door is opened first.",
    "<think>A, B, C</think>B, A, C",
    "The correct order is:\n1. B\n2. A\n3. C",
]
ORDERING_WRONG = [
    "",
    "C, A, B",
    "B, A, C or A, B, C",
    "The correct order is B, A, C or B, C, A.",
    "Either B, A, C or A, B, C.",
    "The order is not B, A, C.",
    "Maybe B, A, C.",
    "The order is B, A, C. Wait, the order is A, B, C.",
    "B, A, C\n\nA, B, C",
    "The man opens the door, sits down, and waves.",
    "The events are A, B, C.",
    "B happens in the kitchen, A and C are elsewhere.",
    "I'm sorry, I can't order them.",
    "<think>The order is B, A, C.",
    "<think>B, A, C</think>",
]


MORE = {
    ("choice", "B", QUESTION): (
        [
            "The man in the video sits down after he opens the door, so the correct answer "
            "is option B: He sits down.",
            "After analyzing the video, the correct answer is **(B) He sits down**. The "
            "man is shown opening the door and then taking a seat.",
            "The man sits down after opening the door. Therefore, the correct option "
            "is:\n\n**B. He sits down**",
            "To determine what the man does, let's review the video:\n\n1. The man opens "
            "the door.\n2. He walks in.\n3. He takes a seat.\n\nGiven this sequence, the "
            "correct answer is:\n\nB. He sits down",
            "The correct option is B because the man sits down.",
            "Correct answer: B",
            "Correct Answer: (B)",
            "Ans: B",
            "B) He sits down",
            "b",
            "b) he sits down",
            "[B]",
            "My answer is B.",
            "I'd go with B.",
            "I'll go with option B.",
            "It's B.",
            "The answer would be B.",
            "The best answer is B.",
            "The best answer is: B",
            "Option B is the correct answer.",
            "B is correct.",
            "(B) is the correct answer.",
            "Let's think step by step. First, he opens the door. Second, he sits. Thus, "
            "the answer is (B).",
            "Based on the visual evidence, the man sits. \n\nFinal answer: B",
            "Final Answer: The final answer is B",
            "The final answer is: $B$",
            "$\\text{B}$",
            "The man sits down.\n\n**Correct Answer:** B. He sits down",
            'The answer is "B".',
            "The answer is 'B. He sits down'.",
            "**Answer:** (B) He sits down\n\n**Reasoning:** The video shows that he sits. "
            "He does not leave (A), he does not pick up a cup (C), and he does not wave "
            "(D).",
            "Answer: B\n\nReasoning: A, C, and D are not supported by the video.",
            "B\n\nThe man opens the door and sits. A is not what happens.",
            "The correct answer is B. He sits down. The other options are incorrect: A is "
            "wrong since he stays.",
            "Sure! The answer is B.",
            "Sure, here is the answer: B",
            "The answer is C? No, the answer is B.",
            "The answer is not A, it is B.",
            "assistant\nB",
            "Let me think.\nOption A: He leaves. This is not seen.\nOption B: He sits "
            "down. This is seen.\nOption C: no cup.\nSo the answer is B.",
            "Step 1: he opens. Step 2: he sits. Answer - B",
            "The statement that best describes it is B.",
            "The options are similar, but B is the best match.",
        ],
        [
            "He sits down after he opens the door.",
            "A. He leaves",
            "The correct answer is A. He leaves. B is wrong.",
            "Not B.",
            "Definitely not B",
            "It isn't B.",
            "B is incorrect.",
            "Anything but B.",
            "B? C?",
            "B/C",
            "B and C",
            "B & D are both correct.",
            "A, B",
            "Possible answers: B, C",
            "The answer can be B or D.",
            "The answer might be B.",
            "I'd say it's between B and C.",
            "Between B and C, hard to say.",
            "I believe A is wrong, C is wrong, so maybe B or D.",
            "The answer is one of A, B.",
            "Answer: B or C",
            "Answer: B, C",
            "Answer: B and C",
            "Plan B is what he follows.",
            "He has vitamin B.",
            "The B train arrives.",
            "B. C. D.",
            "The answer is B, or possibly C.",
            "The answer is B but C is also correct.",
            "The answer is B and C.",
            "The answers are B and C.",
            "Answer: A. Answer: B.",
            "I choose B... no, A.",
            "The correct answer is B, I mean A.",
            "None of the options is correct.",
            "There is no option B in the video.",
            "It depends. If he is tired, B. Otherwise, A.",
            "As an AI, I can't watch videos. The options are: A. He leaves B. He sits down",
            "<answer>B",
            "The answer is \\boxed{B",
            "Question: What does the man do?\nA. He leaves\nB. He sits down\nC. He picks "
            "up the red cup\nD. He waves\nAnswer: A",
            "I would rule out A and C. B it is.",
        ],
    ),
    ("choice", "A", "How?"): (
        [
            "A",
            "The answer is A.",
            "Therefore, A.",
            "A man sits. Therefore, A.",
            "A man sits.\n\nA",
            "The answer is a.",
            "A. The man",
            "An answer: A",
            "A (I think)",
        ],
        [
            "A dog.",
            "A lot of people.",
            "A few, A.",
            "The answer is A man.",
            "I am A.",
            "Answer: A man",
            "In scene A the man waits.",
            "The man gets an A.",
            "So, a man walks.",
            "It is a dog",
        ],
    ),
    ("numeric", "7", "How?"): (
        [
            "Total: 7",
            "Count: 7",
            "7 people.",
            "The total number of people is 7.",
            "I count 7 people: 3 men and 4 women. The answer is 7.",
            "Step 1: 3 men.\nStep 2: 4 women.\nTotal: 3 + 4 = 7",
            "There are a total of 7 people.",
            "**7 people**\n\nExplanation: 3 men and 4 women.",
            "The answer is 7. There are 3 men and 4 women.",
            "The answer is seven (7).",
            "Answer: 7.0",
            "≈ 7",
            "approximately 7",
            "The final answer is: 7 m",
            "Answer: 7\n\nConfidence: 95%",
            "The answer is 7 or so",
        ],
        [
            "7/10",
            "7-8",
            "7 to 8",
            "about 7 or so, maybe 8",
            "Room 7 has 3 people",
            "There are not 7 people.",
            "There are fewer than 7 people.",
            "Answer: 8. Previously I said 7.",
            "So, 7 people enter and 3 leave.",
            "So 3 + 4 = 7, minus 1 = 6.",
            "At first 7.\nThen 6.",
            "Between 5 and 9, so 7 on average? Not sure.",
            "Is it 7?",
            "The man wearing number 7 scores 3 goals.",
            "7 isn't right; it's 6.",
            "The answer isn't 7.",
            "I don't think it is 7.",
        ],
    ),
    ("exact", "red", "How?"): (
        [
            "Red.",
            "The answer is: **red**",
            "red (not blue)",
            "It's red.",
            "It's red, not blue.",
            "Answer: Red\n\nThe cup can be seen at 0:12.",
            'The answer is "red".',
        ],
        [
            "The color of the cup is red.",
            "The answer is red or blue",
            "red and blue",
            "not red",
            "Red?",
            "red/blue",
            "red, I guess",
            "Perhaps red.",
            "Red.\nBlue.",
        ],
    ),
    ("temporal_iou", "12-20", "How?"): (
        [
            "The event takes place from 12 seconds to 20 seconds.",
            "The event occurs between 00:12 and 00:20 in the video.",
            "**Start:** 12s\n**End:** 20s",
            "12.0s - 20.0s",
            "Start time: 12 seconds, end time: 20 seconds.",
            "The action happens from 12 s to 20 s or so.",
            "So the event is from 12 s to 20 s.",
            "First 0-5 s intro. Then the event.\nFinal answer: 12-20",
            "12 seconds, 20 seconds",
        ],
        [
            "The video shows a man (0:00 - 0:12) and then the event. The event starts at "
            "0:12 and ends at 0:20.",
            "From 12 to 20 seconds or from 30 to 40 seconds.",
            "It doesn't happen from 12 to 20 s.",
            "Not 12-20.",
            "12-20? or later",
        ],
    ),
    ("ordering_exact", "BAC", "How?"): (
        [
            "The correct sequence is B, A, C.",
            "1. B\n2. A\n3. C",
            "Order: B, A, C\n\nThe man opens the door first.",
            "First B, then A, and finally C.",
            "The answer is (B) → (A) → (C).",
            "The events occur in the following order: B, A, C.",
        ],
        [
            "B comes first, then A, then C.",
            "B, A, C is wrong.",
            "The order is B, A, C. No, it is A, B, C.",
            "Not B, A, C.",
        ],
    ),
}
"""(kind, reference, question): right and wrong responses."""


@pytest.mark.parametrize("response", CHOICE_RIGHT)
def test_a_choice_that_is_stated(response: str) -> None:
    assert score("choice", response, "B", QUESTION) == 1.0


@pytest.mark.parametrize("response", CHOICE_WRONG)
def test_a_choice_that_is_not_stated(response: str) -> None:
    assert score("choice", response, "B", QUESTION) == 0.0


@pytest.mark.parametrize("response", [r for r in CHOICE_WRONG if not r.startswith("C. He picks")])
def test_a_hedge_is_not_the_other_option_either(response: str) -> None:
    assert score("choice", response, "C", QUESTION) == 0.0


@pytest.mark.parametrize("response", NOT_A[:6] + NOT_A[7:])
def test_an_article_is_no_choice(response: str) -> None:
    expected = 1.0 if response == "A" else 0.0
    assert score("choice", response, "A", QUESTION) == expected
    assert score("choice", response, "I") == 0.0


@pytest.mark.parametrize("response", EXACT_RIGHT)
def test_a_text_that_is_stated(response: str) -> None:
    assert score("exact", response, "Paris") == 1.0


@pytest.mark.parametrize("response", EXACT_WRONG)
def test_a_text_that_is_not_stated(response: str) -> None:
    assert score("exact", response, "Paris") == 0.0


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("Yes, the man opens the door.", "yes", 1.0),
        ("Yes. He opens it in the second frame.", "Yes", 1.0),
        ("No, he does not.", "no", 1.0),
        ("**Yes**, he does.", "yes", 1.0),
        ("No, he does not.", "yes", 0.0),
        ("Yes and no.", "yes", 0.0),
        ("Yes or no, it is hard to say.", "yes", 0.0),
        ("No, wait, yes.", "no", 0.0),
        ("Yes, but also no.", "yes", 0.0),
        ("Nobody, yes.", "no", 0.0),
    ],
)
def test_yes_and_no_may_go_on(response: str, answer: str, expected: float) -> None:
    assert score("exact", response, answer) == expected


@pytest.mark.parametrize("response", NUMERIC_RIGHT)
def test_a_number_that_is_stated(response: str) -> None:
    assert score("numeric", response, "7") == 1.0


@pytest.mark.parametrize("response", NUMERIC_WRONG)
def test_a_number_that_is_not_stated(response: str) -> None:
    assert score("numeric", response, "7") == 0.0


@pytest.mark.parametrize("response", MATH_RIGHT)
def test_a_formula_that_is_stated(response: str) -> None:
    assert score("math", response, "12") == 1.0


@pytest.mark.parametrize("response", MATH_WRONG)
def test_a_formula_that_is_not_stated(response: str) -> None:
    assert score("math", response, "12") == 0.0


@pytest.mark.parametrize("response", TEMPORAL_RIGHT)
def test_a_segment_that_is_stated(response: str) -> None:
    assert score("temporal_iou", response, "12-20") == 1.0


@pytest.mark.parametrize("response", TEMPORAL_WRONG)
def test_a_segment_that_is_not_stated(response: str) -> None:
    assert score("temporal_iou", response, "12-20") == 0.0


@pytest.mark.parametrize("response", ORDERING_RIGHT)
def test_an_order_that_is_stated(response: str) -> None:
    assert score("ordering", response, "BAC") == 1.0
    assert score("ordering_exact", response, "BAC") == 1.0


@pytest.mark.parametrize("response", ORDERING_WRONG)
def test_an_order_that_is_not_stated(response: str) -> None:
    assert score("ordering_exact", response, "BAC") == 0.0


@pytest.mark.parametrize("response", ORDERING_WRONG)
def test_a_part_of_no_order_earns_nothing(response: str) -> None:
    if response not in ("C, A, B", "The events are A, B, C."):
        assert score("ordering", response, "BAC") == 0.0


@pytest.mark.parametrize(
    ("key", "response", "expected"),
    [
        (key, response, expected)
        for key, both in MORE.items()
        for responses, expected in zip(both, (1.0, 0.0), strict=True)
        for response in responses
    ],
)
def test_further_texts(key: tuple[str, str, str], response: str, expected: float) -> None:
    kind, answer, question = key
    assert score(kind, response, answer, question) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("The man pours milk.", 1.0),
        ("<think>A woman.</think>The man pours milk.", 1.0),
        ("<think>The man pours milk.", 0.0),
        ("Nobody.", 0.0),
    ],
)
def test_free_text_is_read_whole(response: str, expected: float) -> None:
    assert score("rouge", response, "The man pours milk.") == expected


@pytest.mark.parametrize("kind", ["choice", "exact", "numeric", "temporal_iou", "ordering_exact"])
@pytest.mark.parametrize(
    "piece", ["The answer is ", "answer is B. ", "So ", "B. ", "\n", ". ", "not ", "A or ", "7 "]
)
def test_a_response_that_repeats_itself_costs_no_time(kind: str, piece: str) -> None:
    answer = {"choice": "B", "exact": "x", "numeric": "7", "temporal_iou": "1-2"}.get(kind, "BAC")
    began = time.process_time()
    score(kind, piece * 10_000, answer)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("kind", "response", "answer"),
    [
        ("choice", "The wrong answer is B.", "B"),
        ("choice", "The least likely answer is B.", "B"),
        ("choice", "My initial answer was B. After watching again, he leaves.", "B"),
        ("choice", "At first glance the answer is B. Looking closer, D matches the video.", "B"),
        ("choice", "It would be wrong to say the answer is B.", "B"),
        ("choice", "Nobody would say that the answer is B.", "B"),
        ("choice", "The answer is B only if the chair is there.", "B"),
        ("choice", "The answer is C, or more precisely B.", "C"),
        ("choice", "The answer is B, but the video shows D.", "B"),
        ("choice", "The answer is B. Let me double-check: he waves, so D fits better.", "B"),
        ("choice", "The answer is B. However, he never sits down.", "B"),
        ("choice", "Answer: B\nEdit: D", "B"),
        ("choice", "The answer is B.\n\nCorrection: D.", "B"),
        ("choice", "B: incorrect", "B"),
        ("choice", "B (incorrect)", "B"),
        ("choice", "B. He sits down\nThis does not happen in the video.", "B"),
        ("choice", "B. He sits down: not shown", "B"),
        ("choice", "B, because he stands, is wrong.", "B"),
        ("choice", "B\n\nD\n\nB", "B"),
        ("choice", "B != D", "B"),
        ("choice", "\u4e0d\u9009B", "B"),
        ("numeric", "The wrong answer is 7.", "7"),
        ("numeric", "The answer is 7.\n\nCorrection: 8.", "7"),
        ("numeric", "The answer is 7. But one leaves, so 6 remain.", "7"),
        ("numeric", "There would be 7 people if nobody left.", "7"),
        ("numeric", "7 (wrong)", "7"),
        ("numeric", "7 is incorrect.", "7"),
        ("numeric", "over 7", "7"),
        ("numeric", "7 or more", "7"),
        ("numeric", "7+", "7"),
        ("numeric", "a maximum of 7", "7"),
        ("numeric", "7 and a half", "7"),
        ("numeric", "twice 7", "7"),
        ("numeric", "7 squared", "7"),
        ("numeric", "7 is too low", "7"),
        ("exact", "The wrong answer is Paris.", "Paris"),
        ("exact", "The answer is Paris. Correction: Rome.", "Paris"),
        ("exact", "The answer is yes. On reflection, no.", "yes"),
        ("temporal_iou", "The event does not happen from 12 s to 20 s.", "12-20"),
        ("temporal_iou", "12-20 (wrong)", "12-20"),
        ("temporal_iou", "The answer is 12-20. However, it is 30-40.", "12-20"),
        ("ordering", "The wrong order is B, A, C.", "BAC"),
        ("ordering", "B, A, C (incorrect)", "BAC"),
        ("math", "The answer is $2$. Correction: $3$.", "2"),
    ],
)
def test_another_answer_than_the_one_that_is_meant_earns_nothing(kind, response, answer):
    assert score(kind, response, answer, QUESTION) == 0


@pytest.mark.parametrize(
    ("kind", "response", "answer"),
    [
        ("choice", "The answer is B. Options A, C and D are wrong.", "B"),
        ("choice", "The answer is B, but not D.", "B"),
        ("choice", "The other options are wrong. The answer is B.", "B"),
        ("numeric", "The answer is 7, not 8.", "7"),
        ("numeric", "There are 7 people over there.", "7"),
        ("temporal_iou", "It happens from 12 s to 20 s, not later.", "12-20"),
    ],
)
def test_a_denial_of_something_else_takes_nothing_back(kind, response, answer):
    assert score(kind, response, answer, QUESTION) == 1
