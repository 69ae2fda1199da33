"""Texts without their dress."""

from __future__ import annotations

import time

import pytest

from megatron_longrl.rewards.plain import plain


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("**12**", "12"),
        ("*a* and __b__ and _c_", "a and b and c"),
        ("***A***", "A"),
        ("2**3**4", "2**3**4"),
        ("2 * 3 * 4", "2 * 3 * 4"),
        ("x_1 and y_2_z", "x_1 and y_2_z"),
        ("# A", "A"),
        ("```json\n[1]\n```", "[1]"),
        ("`A`", "A"),
        ("<b>A</b>", "A"),
        (r"\boxed{A}", "A"),
        (r"so \boxed{\text{A}} it is", "A"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5}, that is \boxed{5}", "5"),
        (r"\boxed{A} or \boxed{B}", "A or B"),
        (r"$\boxed{A}$", "A"),
        (r"\(\mathrm{A}\)", "A"),
        (r"\textbf{(\text{A})}", "(A)"),
        (r"\left(1,2\right)", "(1,2)"),
        (r"12\,000", "12 000"),
        (r"1,\!000", "1,000"),
        (r"\$5", "$5"),
        (r"50\%", "50%"),
        ("（Ａ）。", "(A)."),
        ("【A】、", "[A],"),
        ("「A」", '"A"'),
        ("‘A’", "'A'"),
        ("10⁵ and m⁻²", "10^{5} and m^{−2}"),
        ("1½", "1 1/2"),
        ("A\u200b", "A"),
        ("  A ", "A"),
        ("", ""),
    ],
)
def test_plain(text: str, found: str) -> None:
    assert plain(text) == found


@pytest.mark.parametrize(
    "piece",
    [r"\text{", r"\boxed{", "}", "*", "**a", "_", "_a_", "$", "`", "<b>", "\\", "# ", "½", "⁵"],
)
def test_a_text_that_repeats_itself_costs_no_time(piece: str) -> None:
    began = time.process_time()
    plain(piece * 50_000)
    assert time.process_time() - began < 2
