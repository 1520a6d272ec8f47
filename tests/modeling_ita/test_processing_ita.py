from __future__ import annotations

import string
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from modeling_ita import wordwise_processor
from modeling_ita.processing_ita import ItaProcessor
from modeling_ita.tag_scheme import Span
from modeling_ita.visual_context import VisualContext
from modeling_ita.wordwise_processor import Entity

CONTEXT = {"ocr": ["SUNS", "NBA"], "captions": ["a man", "a dog"], "object_tags": ["red car", "dog"]}


def pieces(processor: ItaProcessor, row: torch.Tensor) -> str:
    return " ".join(processor.tokenizer.convert_ids_to_tokens(row.tolist())).replace(" [PAD]", "")


def test_layout_of_the_two_views(tiny_processor: ItaProcessor) -> None:
    batch = tiny_processor("Phoenix tonight", CONTEXT)
    assert pieces(tiny_processor, batch["input_ids"][0]) == "[CLS] Phoenix tonight [SEP]"
    assert pieces(tiny_processor, batch["cross_input_ids"][0]) == (
        "[CLS] Phoenix tonight [SEP] red car dog [SEP] a man [SEP] a dog [SEP] S ##U ##N ##S NBA [SEP]"
    )
    assert batch["word_positions"].tolist() == [[1, 2]]
    assert batch["has_context"].tolist() == [True]
    assert batch["cross_attention_mask"].sum() == 20
    assert batch.counts["contexts"] == 1 and batch.counts["contexts_cut"] == 0


def test_views_are_made_as_asked(tiny_processor: ItaProcessor) -> None:
    names = {view: set(tiny_processor("Phoenix", CONTEXT, views=view)) for view in ("T", "I+T", "both")}
    assert names["T"] == {"input_ids", "attention_mask", "word_positions"}
    assert names["I+T"] == {"cross_input_ids", "cross_attention_mask", "has_context", "word_positions"}
    assert names["both"] == names["T"] | names["I+T"]
    assert set(tiny_processor("Phoenix")) == names["T"]
    with pytest.raises(ValueError, match="unknown views 'text'"):
        tiny_processor("Phoenix", views="text")


def test_an_empty_kind_is_left_out_with_its_separator(tiny_processor: ItaProcessor) -> None:
    batch = tiny_processor(
        ["Phoenix", "Paris", "London"], [{"object_tags": [], "captions": ["", "a man"]}, {"ocr": ["  "]}, None]
    )
    assert pieces(tiny_processor, batch["cross_input_ids"][0]) == "[CLS] Phoenix [SEP] a man [SEP]"
    assert pieces(tiny_processor, batch["cross_input_ids"][1]) == "[CLS] Paris [SEP]"
    assert batch["has_context"].tolist() == [True, False, False]


def test_kinds_are_data(tiny_encoder: str) -> None:
    tokenizer = BertTokenizer.from_pretrained(tiny_encoder)
    processor = ItaProcessor(tokenizer, context_kinds=["knowledge", "captions"], separate_kinds=["knowledge"])
    context = VisualContext.from_dict({**CONTEXT, "knowledge": ["the Suns", "the NBA"]})
    batch = processor("Phoenix", context)
    assert pieces(processor, batch["cross_input_ids"][0]) == (
        "[CLS] Phoenix [SEP] the Suns [SEP] the NBA [SEP] a man a dog [SEP]"
    )


def test_words_are_tokenized_as_the_tokenizer_does_inside_a_sentence(tiny_processor: ItaProcessor) -> None:
    words = ["the", "Phoenix-Suns", "@", "U.S.", "game", "!"]
    expected = tiny_processor.tokenizer(words, is_split_into_words=True)["input_ids"]
    batch = tiny_processor(words, is_split_into_words=True)
    assert batch["input_ids"][0].tolist() == expected


def test_byte_level_tokenizer_sees_the_space_before_every_word() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "Ġa", "ab", "Ġab"]
    model = models.BPE({t: i for i, t in enumerate(tokens)}, [("Ġ", "a"), ("a", "b"), ("Ġa", "b")], unk_token="<unk>")
    inner = Tokenizer(model)
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    processor = ItaProcessor(PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **special))
    batch = processor(["ab", "ab"], is_split_into_words=True)
    assert pieces(processor, batch["input_ids"][0]) == "<s> Ġab Ġab </s>"


def test_words_without_piece_become_the_unknown_token_and_are_counted(tiny_processor: ItaProcessor) -> None:
    words = ["Phoenix", "\u200d", "\u200b", "game"]
    batch = tiny_processor(words, is_split_into_words=True, labels=[[1, 0, 0, 2]])
    assert pieces(tiny_processor, batch["input_ids"][0]) == "[CLS] Phoenix [UNK] [UNK] game [SEP]"
    assert batch["word_positions"].tolist() == [[1, 2, 3, 4]]
    assert batch["labels"].tolist() == [[1, 0, 0, 2]]
    assert batch.counts["unknown_words"] == 2


def test_padding_and_labels(tiny_processor: ItaProcessor) -> None:
    batch = tiny_processor(["the red car", "Paris", ""], labels=[[0, 0, 0], [3], []])
    assert batch["word_positions"].tolist() == [[1, 2, 3], [1, -1, -1], [-1, -1, -1]]
    assert batch["labels"].tolist() == [[0, 0, 0], [3, -100, -100], [-100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1] * 3 + [0] * 2, [1] * 2 + [0] * 3]
    assert batch.counts["empty_posts"] == 1


def test_the_post_is_never_cut_for_the_context(tiny_encoder: str) -> None:
    processor = ItaProcessor(BertTokenizer.from_pretrained(tiny_encoder), max_length=12)
    batch = processor("the red car in Paris at the game", {"captions": ["a man", "a dog at a stadium"]})
    row = pieces(processor, batch["cross_input_ids"][0])
    assert row == "[CLS] the red car in Paris at the game [SEP] a [SEP]"
    assert batch.counts["contexts_cut"] == 1
    assert batch.counts["context_pieces_cut"] == 7
    assert batch["has_context"].tolist() == [True]


def test_max_context_length(tiny_encoder: str) -> None:
    processor = ItaProcessor(BertTokenizer.from_pretrained(tiny_encoder), max_context_length=4)
    batch = processor("Paris", {"captions": ["a man", "a dog"]})
    assert pieces(processor, batch["cross_input_ids"][0]) == "[CLS] Paris [SEP] a man [SEP]"
    assert batch.counts["context_pieces_cut"] == 3


def test_segment_ids_mark_the_context(tiny_encoder: str) -> None:
    processor = ItaProcessor(BertTokenizer.from_pretrained(tiny_encoder), segment_ids=True)
    batch = processor("Paris", {"captions": ["a man"]})
    assert batch["cross_token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0]]


def test_a_long_post_is_windowed_so_that_every_word_has_its_place(tiny_encoder: str) -> None:
    processor = ItaProcessor(BertTokenizer.from_pretrained(tiny_encoder), max_length=16, window_overlap=6)
    words = [string.ascii_letters[i] for i in range(50)]
    batch = processor([words, ["Paris"]], [CONTEXT, CONTEXT], is_split_into_words=True)
    rows, positions, owners = batch["input_ids"], batch["word_positions"], batch["word_rows"]
    assert batch.counts["windowed_posts"] == 1
    assert (batch["attention_mask"].sum(1) <= 16).all()
    found = processor.tokenizer.convert_ids_to_tokens(rows[owners[0], positions[0]].tolist())
    assert found == words
    inner = [n for n in range(50) if positions[0, n] <= 2 and owners[0, n] > 0]
    assert not inner, "a word at the edge of a window has a better place in the window before"
    assert batch["has_context"].tolist() == [False, True]  # a windowed post has no room for its context
    assert batch.counts["contexts"] == 2 and batch.counts["contexts_cut"] == 2


def test_a_word_longer_than_the_window_is_shortened_and_counted(tiny_encoder: str) -> None:
    processor = ItaProcessor(BertTokenizer.from_pretrained(tiny_encoder), max_length=16, window_overlap=6)
    batch = processor(["a", "x" * 40, "b"], is_split_into_words=True)
    assert batch.counts["shortened_words"] == 1
    assert (batch["word_positions"] >= 1).all()


def test_entities_carry_the_callers_own_characters(tiny_processor: ItaProcessor) -> None:
    text = "🔥 @bob sees the  Phoenix Suns!"
    batch = tiny_processor(text)
    words = [word.text for word in batch.words[0]]
    start = words.index("Phoenix")
    [[entity]] = tiny_processor.post_process_entities([[(Span("ORG", start, start + 2), 0.5)]], batch)
    assert entity == Entity("ORG", 0.5, "Phoenix Suns", 17, 29, start, start + 2)
    assert text[entity.start : entity.end] == "Phoenix Suns"


def test_save_load_save_is_the_identity(tiny_encoder: str, tmp_path: Path) -> None:
    processor = ItaProcessor(
        BertTokenizer.from_pretrained(tiny_encoder),
        context_kinds=["knowledge", "ocr"],
        max_length=128,
        context_builder={"ocr": "rapidocr"},
    )
    processor("Phoenix tonight")
    processor.save_pretrained(tmp_path / "first")
    loaded = ItaProcessor.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    for file in sorted(path.name for path in (tmp_path / "first").iterdir()):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
    assert loaded.context_kinds == ["knowledge", "ocr"]
    assert loaded("Phoenix tonight")["input_ids"].tolist() == processor("Phoenix tonight")["input_ids"].tolist()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"posts": ["a", "b"], "contexts": [None]}, ValueError, "2 posts but 1 contexts"),
        ({"posts": ["a b"], "labels": [[0]]}, ValueError, "post 0 has 2 words but 1 labels"),
        ({"posts": ["a"], "labels": [[0], [0]]}, ValueError, "1 posts but labels of 2"),
        ({"posts": ["a", 3]}, TypeError, "post 1 is a int"),
        ({"posts": [["a", "b"]]}, TypeError, "is_split_into_words=True"),
        ({"posts": [["a"], "b"], "is_split_into_words": True}, TypeError, "post 1 is not a list of words"),
        ({"posts": "a", "contexts": [{"captions": "one string"}]}, (ValueError, TypeError), "captions"),
    ],
)
def test_bad_input_is_refused_by_name(
    tiny_processor: ItaProcessor, call: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny_processor(**call)


def test_settings_out_of_range_are_refused(tiny_encoder: str) -> None:
    tokenizer = BertTokenizer.from_pretrained(tiny_encoder)
    with pytest.raises(ValueError, match="max_length is 4"):
        ItaProcessor(tokenizer, max_length=4)
    narrow = ItaProcessor(tokenizer, max_length=64)
    rows = narrow([["a"] * 300], is_split_into_words=True)["input_ids"]  # 62 words a window, 30 of them new
    assert len(rows) == 9
    with pytest.raises(ValueError, match="window_overlap is -1"):
        ItaProcessor(tokenizer, window_overlap=-1)


def test_half_a_surrogate_pair_is_a_word_like_any_other(tiny_processor: ItaProcessor) -> None:
    batch = tiny_processor("Phoenix \ud83d tonight", {"captions": ["a \ud83d man"]})
    assert pieces(tiny_processor, batch["cross_input_ids"][0]) == "[CLS] Phoenix ? tonight [SEP] a ? man [SEP]"


def test_emoji_only_post(tiny_processor: ItaProcessor) -> None:
    batch = tiny_processor("🔥🔥 👍🏽")
    assert [word.text for word in batch.words[0]] == ["🔥", "🔥", "👍🏽"]
    assert (batch["word_positions"] > 0).all()


def test_threads_share_the_known_words(tiny_processor: ItaProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordwise_processor, "_KNOWN_WORDS", 20)  # so that they are forgotten all the time
    posts = [[f"{'abcdefghij'[n % 10]}{n}" for n in range(start, start + 9)] for start in range(200)]
    alone = [tiny_processor(post, is_split_into_words=True)["input_ids"].tolist() for post in posts]

    def process(number: int) -> bool:
        return (
            tiny_processor(posts[number % 200], is_split_into_words=True)["input_ids"].tolist() == alone[number % 200]
        )

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(100) as pool:
            assert all(pool.map(process, range(600)))
    finally:
        sys.setswitchinterval(before)
