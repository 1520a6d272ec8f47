"""Which column holds what: guesses by name and type, and what is named."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from dataset_scripts.labelling.columns import PostColumns, choose_columns, has_bytes, without_bytes

STRING, WORDS, INT = pa.string(), pa.list_(pa.string()), pa.int64()
BYTES = pa.binary()
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CONTEXT = pa.struct([("captions", WORDS)])

GUESSES: list[tuple[dict[str, pa.DataType], PostColumns]] = [
    ({"text": STRING}, PostColumns("text")),
    ({"Full_Text": STRING, "ID": INT, "IMAGE": STRING}, PostColumns("Full_Text", "IMAGE", None, "ID")),
    ({"title": STRING, "text": STRING, "id": STRING}, PostColumns("text", None, None, "id")),
    ({"tokens": WORDS, "ner_tags": pa.list_(INT), "image": STRUCT}, PostColumns("tokens", "image")),
    ({"text": INT, "anything": STRING}, PostColumns("anything")),
    ({"headline": pa.large_string(), "n": INT}, PostColumns("headline")),
    ({"text": STRING, "anything": pa.list_(STRUCT)}, PostColumns("text", "anything")),
    ({"text": STRING, "one": BYTES, "two": STRUCT}, PostColumns("text")),
    ({"text": STRING, "one": BYTES, "images": WORDS}, PostColumns("text", "images")),
    ({"text": STRING, "image": INT, "id": pa.float64()}, PostColumns("text")),
    ({"text": STRING, "context": STRING}, PostColumns("text")),
    ({"text": STRING, "context": CONTEXT}, PostColumns("text", None, "context")),
    ({"caption": STRING, "filename": STRING}, PostColumns("caption", "filename")),
]


@pytest.mark.parametrize(("types", "expected"), GUESSES)
def test_guesses_are_told(types: dict[str, pa.DataType], expected: PostColumns) -> None:
    columns, told = choose_columns(pa.schema(list(types.items())))
    assert columns == expected
    named = {role: name for role, name in expected._asdict().items() if name is not None}
    assert len(told) == len(named)
    for line, (role, name) in zip(told, named.items(), strict=True):
        assert f"{role}: the column {name!r}" in line
        assert f"--{role}_column" in line


def test_what_is_named_is_taken_and_not_told() -> None:
    schema = pa.schema([("text", STRING), ("other", INT), ("image", STRING), ("id", INT), ("context", CONTEXT)])
    columns, told = choose_columns(schema, text="other", image="none", context="none", id="none")
    assert (columns, told) == (PostColumns("other"), [])
    columns, told = choose_columns(schema, text="image", context="text")
    assert columns == PostColumns("image", None, "text", "id")
    assert len(told) == 1


def test_a_wrong_name_lists_the_columns() -> None:
    schema = pa.schema([("a", STRING), ("b", STRING), ("n", INT)])
    for role in ("text", "image", "context", "id"):
        named: dict[str, Any] = {"text": "a", role: "nome"}
        with pytest.raises(
            ValueError, match=r"no column 'nome' \(the columns are a \(string\), b \(string\), n \(int64\)\)"
        ):
            choose_columns(schema, **named)
    with pytest.raises(ValueError, match=r"--text_column names it \(the columns are a \(string\), b \(string\)"):
        choose_columns(schema)
    with pytest.raises(ValueError, match="no column 'none'"):
        choose_columns(schema, text="none")


def test_bytes() -> None:
    for type_ in (
        BYTES,
        pa.large_binary(),
        STRUCT,
        pa.list_(STRUCT),
        pa.large_list(BYTES),
        pa.struct([("a", STRUCT)]),
    ):
        assert has_bytes(type_)
    for type_ in (STRING, WORDS, INT, CONTEXT):
        assert not has_bytes(type_)


@pytest.mark.parametrize(
    ("type_", "values", "left"),
    [
        (STRUCT, [{"bytes": b"a", "path": "a.png"}, None, {"bytes": b"b", "path": None}],
         [{"bytes": None, "path": "a.png"}, None, {"bytes": None, "path": None}]),
        (pa.list_(STRUCT), [[{"bytes": b"a", "path": "a.png"}, None], [], None],
         [[{"bytes": None, "path": "a.png"}, None], [], None]),
        (pa.struct([("in", STRUCT)]), [{"in": {"bytes": b"a", "path": "p"}}], [{"in": {"bytes": None, "path": "p"}}]),
        (pa.struct([("all", pa.list_(BYTES)), ("n", INT)]), [{"all": [b"a"], "n": 1}], [{"all": [None], "n": 1}]),
        (BYTES, [b"a"], None),
        (pa.list_(BYTES), [[b"a"]], None),
    ],
)  # fmt: skip
def test_bytes_are_left_out_and_paths_stay(type_: pa.DataType, values: list[Any], left: list[Any] | None) -> None:
    column = pa.chunked_array([pa.array(values[:1], type_), pa.array(values[1:], type_)])
    found = without_bytes(column)
    if left is None:
        assert found is None
    else:
        assert found is not None
        assert found.type == type_
        assert found.to_pylist() == left
