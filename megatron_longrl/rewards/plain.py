r"""A text without its dress: markdown, LaTeX wrappers, full-width characters, boxes."""

from __future__ import annotations

import re
import unicodedata

from megatron_longrl.data.answer import boxes

_ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033\u300c\u300d\u300e\u300f\u300a\u300b", '"'),
        **dict.fromkeys("\u3010\u3014\u3016", "["),
        **dict.fromkeys("\u3011\u3015\u3017", "]"),
        "\u3002": ".",  # ideographic full stop
        "\u3001": ",",  # ideographic comma
        "\u2044": "/",  # fraction slash
        "\u200b": None,  # zero-width space
        "\ufeff": None,
    }
)
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
_FRACTION = re.compile("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_FENCE = re.compile(r"```[A-Za-z]*|`")
_HTML = re.compile(r"</?(?:b|i|strong|em|u|mark|p|span)\s*>|<br\s*/?>", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*]+)(?<=[^\s*])\1(?![\w*])")
_UNDERSCORES = re.compile(r"(?<!\w)(_{1,2})(?=[^\s_])([^_]+)(?<=[^\s_])\1(?!\w)")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+", re.MULTILINE)
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:bf|it|rm|sf|tt|bb|cal)|operatorname|mbox|emph|boxed"
    r"|underline|fbox|hbox|large|Large)\s*\{([^{}]*)\}"
)
_SPACE = re.compile(r"\\(?:[,;: ]|q?quad(?![A-Za-z]))")
_ESCAPED = re.compile(r"\\([$%#&])")
_NOTHING = re.compile(r"\\(?:[!()\[\]]|(?:left|right|displaystyle|bf|rm)(?![A-Za-z]))|(?<!\\)\$")
_DEPTH = 8  # wrappers within wrappers


def plain(text: str) -> str:
    r"""The text as one would read it aloud.

    A ``\boxed{…}`` stands for the whole text; where two differ, all of the text counts. Bold and
    italic marks, code fences, dollar signs, ``\text{…}`` and its like, and spaces of LaTeX go;
    full-width characters become usual ones (Unicode's form NFKC).
    """
    for _ in range(_DEPTH):
        found = set(boxes(text))
        if len(found) != 1:  # Two different ones are two answers.
            break
        (text,) = found
    # NFKC alone would read 10⁵ as 105, and 1½ as 11/2.
    text = _FRACTION.sub(" ", _SUPERSCRIPT.sub(r"^{\g<0>}", text))
    text = unicodedata.normalize("NFKC", text)
    text = _HTML.sub("", _FENCE.sub("", text)).translate(_ALIKE)
    text = _ESCAPED.sub(r"\1", _NOTHING.sub("", _SPACE.sub(" ", text)))
    for _ in range(_DEPTH):
        text, count = _WRAPPER.subn(r"\1", text)
        if not count:
            break
    text = _UNDERSCORES.sub(r"\2", _EMPHASIS.sub(r"\2", _EMPHASIS.sub(r"\2", text)))
    return _HEADING.sub("", text).strip()
