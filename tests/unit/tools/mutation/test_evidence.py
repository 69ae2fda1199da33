"""What follows for one suite from the runs of another, and from a launch that ends in its midst."""

from __future__ import annotations

import pytest

from tools.mutation.evidence import Decision, Evidence, decide, read_evidence
from tools.mutation.run import what_follows

A, B, C = (f"tests/unit/test_{name}.py::t" for name in "abc")


def always(suite, other, test):
    return True


def except_b(suite, other, test):
    return suite == other or test != B


def end(test, outcome, **more):
    return {"event": "end", "test": test, "outcome": outcome, **more}


def test_without_evidence_all_remains():
    assert decide("full", [A, B], {}, always) == Decision((A, B))
    assert decide("full", [A, B], {}, always).is_open


def test_what_catches_in_one_suite_catches_in_another_that_has_the_test():
    evidence = {"first": Evidence({A}, {B: "failed"})}
    assert decide("full", [A, B, C], evidence, always) == Decision((), B, "failed", ("first",))
    assert decide("full", [A, C], evidence, always).remaining == (C,)


def test_a_test_that_has_changed_shows_nothing():
    evidence = {"first": Evidence({A}, {B: "failed"})}
    assert decide("old", [A, B, C], evidence, except_b).remaining == (B, C)


def test_no_test_runs_twice():
    evidence = {"first": Evidence({A, B}), "full": Evidence({C})}
    decision = decide("full", [A, B, C], evidence, always)
    assert not decision.is_open and decision.seen_by == ("first", "full")
    assert decide("old", [A, B, C], evidence, except_b).remaining == (B,)


def test_own_evidence_comes_first():
    evidence = {"first": Evidence(set(), {B: "failed"}), "full": Evidence(set(), {C: "timeout"})}
    assert decide("full", [B, C], evidence, always).caught_by == C


def test_a_file_that_cannot_be_imported_fails_with_all_its_tests():
    evidence = read_evidence([{"event": "collection", "test": "tests/unit/test_b.py"}])
    decision = decide("full", [A, B], {"full": evidence}, always)
    assert (decision.caught_by, decision.how) == (B, "import")


def test_reading_the_log():
    events = [
        {"event": "begin", "test": A},
        end(A, "passed"),
        end(B, "skipped"),
        end(C, "failed", how="timeout"),
        {"event": "fixture", "name": "fixture:x", "seconds": 1},
        {"event": "begin", "test": "tests/unit/test_a.py::killed"},
    ]
    assert read_evidence(events) == Evidence({A, B}, {C: "timeout"})
    assert read_evidence([*events, {"event": "void", "test": C}]).failed == {}


# ---- Launches ----


def begin(test):
    return {"event": "begin", "test": test}


@pytest.mark.parametrize("is_last", [False, True])
def test_a_launch_that_dies_within_a_test_has_failed_there(is_last):
    news = [begin(A), end(A, "passed"), begin(B)]
    (row,) = what_follows(news, [A, B, C], -9, is_last=is_last)
    assert (row["test"], row["outcome"], row["how"]) == (B, "failed", "crash")


def test_a_launch_that_dies_outside_of_tests_gets_another_attempt():
    news = [begin(A), end(A, "passed")]
    assert what_follows(news, [A, B], 1, is_last=False) == []
    (row,) = what_follows(news, [A, B], 1, is_last=True)
    assert (row["test"], row["how"]) == (B, "launch")


def test_a_failure_needs_no_more_words():
    assert what_follows([end(A, "failed")], [A, B], 1, is_last=True) == []


def test_what_a_good_launch_has_not_run_is_no_more():
    (row,) = what_follows([end(A, "passed")], [A, B], 0, is_last=False)
    assert (row["test"], row["outcome"]) == (B, "skipped")
