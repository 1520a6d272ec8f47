from __future__ import annotations

import pytest

from modeling_ita.wordwise_processor import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Phoenix tonight!", ["Phoenix", "tonight", "!"]),
        ("@bob at the #NBA game", ["@", "bob", "at", "the", "#", "NBA", "game"]),
        ("meet me @ noon", ["meet", "me", "@", "noon"]),
        ("The U.S. at 9.30 a.m., 80,000 fans", ["The", "U.S.", "at", "9.30", "a.m.", ",", "80,000", "fans"]),
        ("see https://t.co/aB3?x=1. now", ["see", "https://t.co/aB3?x=1", ".", "now"]),
        ("(www.example.org/a_b)", ["(", "www.example.org/a_b", ")"]),
        ("It's hip-hop…", ["It", "'", "s", "hip", "-", "hop", "…"]),
        ("@jk_rowling_", ["@", "jk_rowling_"]),
        ("so good :) ;-P", ["so", "good", ":)", ";-P"]),
        ("5th and 20/20", ["5th", "and", "20", "/", "20"]),
        ("👍🏽🔥❤️", ["👍🏽", "🔥", "❤️"]),
        ("👩‍👩‍👧 wow", ["👩‍👩‍👧", "wow"]),
        ("🇺🇸🇫🇷", ["🇺🇸", "🇫🇷"]),
        ("1️⃣ first", ["1️⃣", "first"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("Cafe\u0301 Zoë", ["Cafe\u0301", "Zoë"]),
        ("", []),
        (" \t\n", []),
    ],
)
def test_splits_as_tweets_are(text: str, words: list[str]) -> None:
    assert [word.text for word in split_words(text)] == words


@pytest.mark.parametrize("text", ["Phoenix  tonight!\n@bob 🏴󠁧󠁢󠁳󠁣󠁴󠁿 U.S.", "a\u00a0b\u200bc", "\ufe0f\u200d", "🇺🇸🇫 ok"])
def test_every_character_but_space_is_in_one_word_and_offsets_are_true(text: str) -> None:
    words = split_words(text)
    assert all(text[word.start : word.end] == word.text for word in words)
    covered = [i for word in words for i in range(word.start, word.end)]
    assert covered == sorted(set(covered))
    assert "".join(text[i] for i in covered).replace(" ", "") == "".join(text.split())
