"""The letter that a text chooses: "A", "(A) a cup", "Option A", "The answer is A, because …"."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_longrl.rewards.options import Options, normal, same_text
from megatron_longrl.rewards.plain import plain

# A capital letter that stands alone, or a small one with nothing but punctuation behind it.
_LETTER = r"[(\[{<\"']*\s*(?:([A-Z])(?!\w|['-]\w)|([a-z])(?=\s*[)\].,;:!]|\s*$))\s*[)\]}>\"']*"
_NAMED = r"(?:the\s+)?(?:(?:correct|right)\s+)?(?:(?:option|choice|letter|answer)\b)?\s*[:#]?\s*"
_CUE = re.compile(
    rf"(?i:\b(?:ans(?:wers?)?|choice|option|letter|selection)[\"']?\s*"
    rf"(?:is|was|are|should\s+be|would\s+be|must\s+be|:|=|->|\u2192|[\u2013\u2014-](?=\s))\s*:?\s*{_NAMED}){_LETTER}"
    rf"|(?i:(?:\b(?:i|we)(?:'(?:d|ll|m))?\s+(?:\w+\s+){{0,3}}?|(?:^|[.,:;\n])\s*)"
    rf"(?:choose|chose|pick|picked|select|selected|say|go\s+with|going\s+with)\s+{_NAMED})"
    rf"{_LETTER}"
    rf"|(?i:\b(?:it|this|that)(?:'s|\s+is|\s+must\s+be|\s+should\s+be)\s+{_NAMED}){_LETTER}"
    # Chinese: answer, option, choose; is.
    rf"|(?:\u7b54\u6848|\u9009\u9879|\u9009\u62e9|\u9009|\u9078)\s*"
    rf"(?:\u662f|\u4e3a|\u70ba|:)?\s*(?:\u9009\u9879)?\s*{_LETTER}"
    rf"|(?<![\w'])[(\[]?([A-Z])[)\]]?\s+(?i:(?:is|was)\s+(?:clearly\s+)?(?:the\s+)?(?:correct|right|best)\b)"
)
_START = re.compile(r"[(\[{<\"']*\s*([A-Za-z])(?![\w'])((?:\s*[)\]}>\"']+)?)")
_NAMED_START = re.compile(
    r"(?i:(?:the\s+|my\s+)?(?:(?:final|correct|right|best)\s+)*"
    rf"(?:option|choice|letter|answer|ans)s?\b\s*[:.#-]?\s*){_LETTER}"
)
_LEAD = re.compile(
    r"(?:[-\u2022]\s+|\d+[.)]\s+)?(?:(?i:therefore|thus|so|hence|ok|okay|well|yes|definitely"
    r"|clearly|surely|obviously)\b\s*,?\s*)?(?=\S)"
)
_INITIALS = re.compile(r"\.\s?[A-Z]\.")
_NO_ARTICLE = re.compile(  # What follows "A" or "I" where that is a letter.
    r"\s*(?:$|[^\w\s]|\n)|\s+(?:(?i:because|since|as|for|due|rather|not|instead|is|isn't|was|are"
    r"|seems|and|or|but|if|with|in|on|at|by|from|which|where|when|while|the|given|based|unlike"
    r"|matches|fits|it|that|this|so|can|could|may|might|must|also|only|too)\b|[A-Z](?![\w']))"
)
_REASON = re.compile(
    r"(?i:\b(?:because|since|(?<!well\s)as(?!\s+well)|due\s+to|rather\s+than|instead\s+of|not|unlike|while|whereas"
    r"|explanation|reason\w*|justification|rationale)\b)|\u56e0\u4e3a|\u7406\u7531|\u89e3\u91ca"
)
_DENIED = re.compile(
    r"\s*(?i:(?:option|choice|answer)?\s*(?:(?:is|was|ca|could|does)n't\b|cannot\b"
    r"|(?:is|was|seems)\s+(?:clearly\s+|definitely\s+)?"
    r"(?:not\b|(?:the\s+)?(?:wrong|incorrect|false)\b)))"
)
_NEGATION = re.compile(r"(?i:\b(?:not|never|cannot|nor|neither|hardly)\b|n't\b)[^.;,:]*$")
_OTHER = re.compile(
    r"(?<![\w'.])[\"']*([A-Z])(?!\w|['.]\w)|[(\[]\s*([A-Za-z])\s*[)\]]"
    r"|\s([A-Z])[.):]\s+(?=[a-z])"  # the next option of a list
)
_BEFORE_OTHER = re.compile(  # What stands before a letter that is a choice of its own.
    r"(?:[,;:/&|+\n.!?<>=\u2192]|\b(?i:or|and|is|be|vs|versus|maybe|perhaps|possibly|probably|actually"
    r"|alternatively|even|also|but|then|either|although|though|however|plus|option|choice"
    r"|well\s+as|mean|along\s+with|together\s+with))\s*$"
)
_BUT = re.compile(
    r"(?i:\b(?:but|though|although|however|yet|or|rather|while|whereas)\b|!=|\u2260)"
    r"[^.;!?\n]{0,80}?(?<![\w'])([A-Z])(?![\w'])"
)
"""Another letter in a later part of the sentence: "B, but the video shows D"."""
_DENIED_THERE = re.compile(
    r"(?i:\b(?:not|no|never|neither|nor|without|wrong|incorrect|false|rather|instead|unlikely)\b|n't\b)"
)
_NEAR = 300  # characters behind a letter in which "but D" is about it
_BEFORE = 24  # characters that are looked at before such a letter
_LATER = re.compile(
    r"(?i:\b(?:or|maybe|perhaps|possibly|actually|wait|i\s+mean)\b[\s,]*(?:maybe\s+|perhaps\s+|possibly\s+"
    rf"|probably\s+|even\s+|rather\s+)?{_NAMED}){_LETTER}\s*(?:[.,;!?]|$)"
)
_SEVERAL = re.compile(
    r"(?i:(?:the\s+)?(?:correct\s+)?(?:answers?|options?|choices?)\s*(?:is|are|:)?\s*)?"
    r"([(\[]?[A-Z][)\]]?(?:(?:\s*[,;/&+]\s*(?:and\s+)?|\s+and\s+|\s*(?=[(\[]))[(\[]?[A-Z][)\]]?)+"
    r"|[A-H]{2,8})\s*\.?"
)


def chosen_letter(text: str, options: Options) -> str | None:
    """The only letter that a text chooses.

    Args:
        options: the options, as far as they are known; the text of one stands for its letter.

    Returns:
        None where the text chooses none, or where it hedges: "A or B", "A and C".
    """
    text = undressed(text)
    named = letter_of_text(text, options)
    if named is not None:
        return named
    lead = _LEAD.match(text)
    found = _at_start(text[lead.end() :] if lead else text, options)
    if found is None:
        named_as_answer = list(letter_cues(text))
        if len({letter for letter, _, _ in named_as_answer}) != 1:
            return None
        letter, _, end = named_as_answer[-1]
        found = letter, text[end:]
    letter, rest = found
    if names_another(rest, letter, options):
        return None
    return None if is_hedged(without_option(rest, options.get(letter, "")), letter) else letter


def letter_of_text(text: str, options: Options) -> str | None:
    """The letter of the only option that has this text."""
    wanted = normal(text)
    if not wanted or (len(wanted) == 1 and wanted.isalpha()):  # It may be an option's letter.
        return None
    found = [letter for letter, option in options.items() if normal(option) == wanted]
    return found[0] if len(found) == 1 else None


def names_another(rest: str, letter: str, options: Options) -> bool:
    """Whether the text behind a letter is that of another option: "B. left" where left is A."""
    return letter_of_text(re.sub(r"^[\s.:,)(\u2013\u2014-]+|[\s)]+$", "", rest), options) not in (
        None,
        letter,
    )


def several_letters(text: str) -> frozenset[str] | None:
    """The letters of "A, C", "A and C", "(A)(C)" or "AC"; None where a text lists none, or one."""
    match = _SEVERAL.fullmatch(undressed(text))
    letters = frozenset(re.findall(r"[A-Z]", match[1])) if match else frozenset()
    return letters if len(letters) > 1 else None


def single_letter(text: str) -> str | None:
    """Return the letter of a text that is one letter ("B", "(B)", "B."), or one of A to H with a
    text ("B. the left one"); None of all others, such as initials ("U.S.", "J. K. Rowling")."""
    text = undressed(text)
    match = re.fullmatch(r"[(\[]?\s*([A-Z])\s*[)\].:]*", text)
    if match is None:
        match = re.match(r"(?:[(\[]\s*([A-H])\s*[)\]]|([A-H])[.):])\s*(?=\S)(?!\w\.)", text)
        if match is None:
            return None
    return match[match.lastindex or 0]


def undressed(text: str) -> str:
    """A text without dress, and without quotes around it."""
    text = plain(text).replace("*", "").replace("_", " ")
    return text.strip().strip("\"'").strip()


def _at_start(text: str, options: Options) -> tuple[str, str] | None:
    """The letter with which a text begins, and what follows it."""
    match = _NAMED_START.match(text)
    if match is not None and not is_word(text, match):
        return match[match.lastindex or 0].upper(), text[match.end() :]
    match = _START.match(text)
    if match is None:
        return None
    letter, rest = match[1].upper(), text[match.end() :]
    heads = bool(match[2].strip()) or not rest or rest[0] in ".:,;!\n\u2014"
    if heads and _INITIALS.match(rest) and not same_text(rest[1:], options.get(letter, "")):
        return None
    if match[1].islower():
        ends = not rest.strip(" .,:;!") or bool(match[2].strip(" \"'>"))
        return (letter, rest) if ends or re.match(r"[.:]\s", rest) else None
    if heads or re.match(r"\s+[-\u2013\u2014(]", rest):
        return letter, rest
    if not rest[0].isspace():
        return None
    own = options.get(letter)
    is_own = own is not None and normal(rest) == normal(own)
    return (letter, rest) if is_own or not is_word(text, match, 1) else None


def letter_cues(text: str) -> Iterator[tuple[str, int, int]]:
    """Letters that the text calls its answer: (letter, where the words begin that say so, where
    they end)."""
    for match in _CUE.finditer(text):
        if text[max(0, match.start() - 1) : match.start()] == "\u4e0d":  # Chinese: not
            continue
        if not is_word(text, match) and not _NEGATION.search(
            text, max(0, match.start() - 80), match.start()
        ):
            yield match[match.lastindex or 0].upper(), match.start(), match.end()


def other_letters(text: str) -> Iterator[str]:
    """Letters that are choices in a text: after "or", after a comma, in brackets."""
    for match in _OTHER.finditer(text):
        if is_word(text, match):
            continue
        before = text[max(0, match.start() - _BEFORE) : match.start()]
        if match[1] is None or not before.strip() or _BEFORE_OTHER.search(before):
            yield match[match.lastindex or 0].upper()


def is_word(text: str, match: re.Match[str], group: int | None = None) -> bool:
    """Whether the letter that was found is the article "A" or the pronoun "I"."""
    group = group or match.lastindex or 0
    return match[group] in ("A", "I") and _NO_ARTICLE.match(text, match.end(group)) is None


def without_option(rest: str, option: str) -> str:
    """Return the text behind a letter, without the text of its option."""
    text = rest.lstrip(" .:)-\u2013\u2014")
    option = plain(option)
    if option and text.casefold().startswith(option.casefold()):
        return "." + text[len(option) :]
    return rest


def is_hedged(rest: str, letter: str) -> bool:
    """Whether what follows a choice takes it back, or chooses another one as well."""
    if _DENIED.match(rest):
        return True
    reason = _REASON.search(rest)
    before = rest[: reason.start()] if reason else rest
    if any(other != letter for other in other_letters(before)):
        return True
    after = rest[len(before) :]
    later = [match[match.lastindex or 0].upper() for match in _LATER.finditer(after)]
    later += [other for other, _, _ in letter_cues(rest)]
    near = rest[:_NEAR]
    for match in _BUT.finditer(near):
        clause = re.split(r"[.;!?\n]", near[match.start() :], maxsplit=1)[0]
        if not is_word(near, match) and not _DENIED_THERE.search(clause):
            later.append(match[1])
    return any(other != letter for other in later)
