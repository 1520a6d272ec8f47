"""Tables as plain text."""

from __future__ import annotations

from hub_card.report.text_table import aligned, flush_left


def test_numbers_stand_right_under_a_rule() -> None:
    assert aligned([["view", "F1"], ["T", "100.0"], ["wrong image", "9.5"]]) == [
        "view            F1",
        "───────────  ─────",
        "T            100.0",
        "wrong image    9.5",
    ]


def test_words_stand_left_without_trailing_blanks() -> None:
    assert flush_left([("view", "entity"), ("the post alone", ""), ("a.png", "Ohio")]) == [
        "view            entity",
        "the post alone",
        "a.png           Ohio",
    ]
