"""Which column holds what: the text of the posts, their pictures, given contexts and ids."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

NAMES = {
    "text": ("text", "tweet", "post", "content", "body", "message", "full_text", "sentence", "caption", "words",
             "tokens", "title"),
    "image": ("image", "images", "picture", "pictures", "photo", "photos", "img", "image_path", "image_file",
              "file_name", "filename", "media"),
    "context": ("context",),
    "id": ("id", "tweet_id", "post_id", "id_str", "row_id", "uid"),
}  # fmt: skip
"""The names by which a column is guessed, in this order, whatever their case."""
ADDED = ("entities", "image_state", "context", "error")


class PostColumns(NamedTuple):
    """The columns of a table of posts; None where there is none.

    Attributes:
        text: the posts, as strings or lists of words.
        image: their pictures: a path, the bytes of a file, a struct of both, or a list of these.
        context: visual contexts that are given, as a struct or JSON text.
        id: their names, for messages.
    """

    text: str
    image: str | None = None
    context: str | None = None
    id: str | None = None


def choose_columns(
    schema: pa.Schema,
    text: str | None = None,
    image: str | None = None,
    context: str | None = None,
    id: str | None = None,
) -> tuple[PostColumns, list[str]]:
    """The columns of the posts: those that are named, and good guesses for the others.

    `"none"` means that there is no such column.

    Args:
        schema: the columns of the table.
        text: the column of the posts. Default: guessed by its name, or the only column of strings.
        image: the column of pictures. Default: guessed by its name, or the only column of images.
        context: the column of given contexts. Default: guessed by its name if it holds dictionaries.
        id: the column of ids. Default: guessed by its name.

    Returns:
        The columns, and a line for every guess.

    Raises:
        ValueError: a column does not exist, or none can be guessed for the text; the message lists the columns.
    """
    types = dict(zip(schema.names, schema.types, strict=True))
    listed = ", ".join(f"{name} ({type_})" for name, type_ in types.items())
    chosen: dict[str, str | None] = {}
    told = []
    for role, named in {"text": text, "image": image, "context": context, "id": id}.items():
        if named is not None:
            if named == "none" and role != "text":
                chosen[role] = None
                continue
            if named not in types:
                raise ValueError(f"there is no column {named!r} (the columns are {listed:.1000})")
            chosen[role] = named
            continue
        free = {name: type_ for name, type_ in types.items() if name not in chosen.values()}
        chosen[role] = _guess(role, free)
        if chosen[role] is not None:
            told.append(f"{role}: the column {chosen[role]!r} (a guess: --{role}_column names another, or none)")
    if chosen["text"] is None:
        raise ValueError(f"which column holds the text? --text_column names it (the columns are {listed:.1000})")
    return PostColumns(str(chosen["text"]), chosen["image"], chosen["context"], chosen["id"]), told


def has_bytes(type_: pa.DataType) -> bool:
    """Whether values of this type are, or hold, the bytes of files."""
    if pa.types.is_struct(type_):
        return any(has_bytes(type_.field(n).type) for n in range(type_.num_fields))
    if _is_list(type_):
        return has_bytes(type_.value_type)
    return _is_binary(type_)


def without_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column without the bytes of its images: their paths stay; None if nothing does.

    The type stays the same, so that the column can still be read as one of images.
    """
    type_ = column.type
    if not pa.types.is_struct(type_.value_type if _is_list(type_) else type_):
        return None
    return pa.chunked_array([pa.array([_without(value) for value in column.to_pylist()], type_)], type_)


def _without(value: object) -> object:
    if isinstance(value, list):
        return [_without(item) for item in value]
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items()}
    return None if isinstance(value, bytes) else value


def _guess(role: str, types: dict[str, pa.DataType]) -> str | None:
    fitting = [name for name, type_ in types.items() if _fits(role, type_)]
    by_name = {name.lower(): name for name in reversed(fitting)}
    found = next((by_name[name] for name in NAMES[role] if name in by_name), None)
    if found is None and role == "text":
        strings = [name for name in fitting if _is_string(types[name])]
        return strings[0] if len(strings) == 1 else None
    if found is None and role == "image":
        images = [name for name, type_ in types.items() if has_bytes(type_)]
        return images[0] if len(images) == 1 else None
    return found


def _fits(role: str, type_: pa.DataType) -> bool:
    inner = type_.value_type if _is_list(type_) else type_
    if role == "text":
        return _is_string(inner)
    if role == "image":
        return _is_string(inner) or has_bytes(inner)
    if role == "context":
        return pa.types.is_struct(type_)
    return _is_string(type_) or pa.types.is_integer(type_)


def _is_string(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _is_binary(type_: pa.DataType) -> bool:
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
