"""The pages say what is true: messages are the code's, flags exist, links lead somewhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from megatron_longrl.cli.load import load_config
from megatron_longrl.cli.ranks import RankOptions
from megatron_longrl.config.flags import build_parser
from megatron_longrl.config.names import FieldNames
from megatron_longrl.config.presets import ALGORITHMS
from megatron_longrl.config.schema import all_sections
from tests.page_commands import PAGES, ROOT, blocks

DOCS = ROOT / "docs"
FAQ = DOCS / "faq.md"
GUIDES = [FAQ, DOCS / "glossary.md", DOCS / "algorithms.md"]
GAP = "…"
FOREIGN_FLAGS = {"--ipc", "--shm-size", "--pid", "--signal"}
"""Of docker, py-spy and sbatch."""

_PLACE = re.compile(r"%[-+ #0-9.]*[a-z]|\{[^{}]*\}")
"""What a value takes the place of, in a text for ``%`` or ``format``."""


# ---- Messages ----


def quoted_messages() -> list[str]:
    """Of the FAQ: lines of blocks of text, and what the tables of messages quote."""
    found = [
        line
        for block in blocks()
        if block.page == FAQ and block.language == "text"
        for line in block.text.splitlines()
        if line.strip()
    ]
    for table in re.findall(r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)+)", FAQ.read_text(), re.M):
        found += re.findall(r"^\| `([^`]+)` \|", table, re.M)
    return found


@cache
def written_by_the_code() -> frozenset[str]:
    """Every text of the package's code, with a gap in the place of each value."""
    texts = set()
    for path in (ROOT / "megatron_longrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else GAP for p in node.values]
                texts.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts |= {node.value, _PLACE.sub(GAP, node.value)}
    return frozenset(_plain(text) for text in texts)


def _plain(text: str) -> str:
    """One line, in which several values side by side are one gap."""
    return re.sub(rf"{GAP}+", GAP, " ".join(text.split()))


def is_written(message: str) -> bool:
    """Whether the code has it, or the parts that it puts together with a colon or semicolon."""
    message = _plain(message)
    if message == GAP or any(message in text for text in written_by_the_code()):
        return True
    joints = [match.span() for match in re.finditer("[:;] ", message)]
    return any(is_written(message[:a]) and is_written(message[b:]) for a, b in joints)


@pytest.mark.parametrize("message", quoted_messages())
def test_a_quoted_message_is_the_codes(message: str) -> None:
    assert is_written(message.removeprefix("error: ")) or is_written(message)


def test_the_faq_quotes_messages() -> None:
    assert len(quoted_messages()) > 60
    assert not is_written("no room is left for the engine")
    assert not is_written("sample skipped: because it is late")
    assert is_written("sample skipped: …")


def test_the_early_warnings_are_all_in_the_faq() -> None:
    from megatron_longrl.observability import health_checks as watch

    quoted = "\n".join(map(_plain, quoted_messages()))
    for sign in watch.HEALTH_CHECKS:
        assert f"{sign.name}: {_plain(_PLACE.sub(GAP, sign.line))}" in quoted, sign.name


# ---- Flags ----


@cache
def known_flags() -> frozenset[str]:
    """Those of all programs of this project."""
    options = build_parser(
        all_sections(), FieldNames(all_sections()), None, "x"
    )._option_string_actions
    found = set(options) | {f"--{name.replace('_', '-')}" for name in vars(RankOptions())}
    found |= {"--standalone"}  # torchrun's
    sources = [*(ROOT / "tools").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    for path in [*sources, *(ROOT / "megatron_longrl").rglob("*.py")]:
        found |= set(re.findall(r'add_argument\(\s*f?"(--[\w-]+)"', path.read_text("utf-8")))
    return frozenset(found | {"--loader", "--saver", "--help", "--full-slice"})


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_flags_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for word in sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - FOREIGN_FLAGS):
        is_beginning = word == "--lora" or word.endswith("-")  # --freeze-…
        known = any(flag.startswith(word) for flag in known_flags())
        assert word in known_flags() or (is_beginning and known), word


def test_each_algorithm_is_on_the_page() -> None:
    table = (DOCS / "algorithms.md").read_text().partition("## The defaults of each algorithm")[2]
    assert set(re.findall(r"^\| `([\w+]+)` \|", table, re.M)) == set(ALGORITHMS.built_in)


def recommended() -> list[tuple[str, str]]:
    """(algorithm, flags) of the table of situations."""
    text = (DOCS / "algorithms.md").read_text().partition("## The defaults of each algorithm")[0]
    rows = [line.split("|")[2:4] for line in text.splitlines() if line.startswith("| ")]
    return [
        (name, " ".join(re.findall(r"`([^`]*)`", flags)))
        for names, flags in rows
        for name in re.findall(r"`([\w+]+)`", names)
        if name in ALGORITHMS.built_in
    ]


@pytest.mark.parametrize(("algorithm", "flags"), recommended())
def test_recommended_flags_are_a_configuration(
    algorithm: str, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    data = tmp_path / "train.jsonl"
    data.write_text('{"problem": "?", "answer": "A"}\n')
    model = ["--config", str(ROOT / "examples/quickstart/model.yaml"), "--tokenizer-model", "t"]
    given = [*model, "--train-data-path", str(data), "--context-parallel-size", "1"]
    given += ["--max-position-embeddings", "32768", "--rl-algorithm", algorithm, *flags.split()]
    assert load_config(given, "rl").algorithm.rl_algorithm == algorithm


def test_situations_have_recommendations() -> None:
    assert len(recommended()) >= 12


# ---- Links ----


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target
