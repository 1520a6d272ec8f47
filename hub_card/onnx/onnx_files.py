"""Finds the external files that an ONNX graph reads, without opening any of them.

The format is nested protocol buffer messages; a tensor names a file in its field `external_data`. Tensors occur in a
graph's initializers and in the attributes of its nodes, which may hold subgraphs with tensors of their own. All other
fields are skipped. This needs no `onnx` package, which servers do not have installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VARINT, _FIXED64, _RECORD, _FIXED32 = 0, 1, 2, 5
# For each message type, the field numbers in onnx.proto that lead to tensors.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_data(model: bytes) -> Iterator[dict[str, str]]:
    """The location of every tensor stored outside the model file: `location`, `offset`, `length` …

    Args:
        model: the model file.

    Raises:
        ValueError: it is not such a file, or a damaged one.
    """
    return _places(memoryview(model), "model", 0)


def _places(record: memoryview, kind: str, depth: int) -> Iterator[dict[str, str]]:
    if depth > 50:
        raise ValueError("its records are nested too deeply")
    place: dict[str, str] = {}
    for number, content in _fields(record):
        inner = _FIELDS[kind].get(number)
        if inner is None or content is None:
            continue
        if inner == "entry":
            pair = {number: bytes(text or b"").decode() for number, text in _fields(content)}
            place[pair.get(1, "")] = pair.get(2, "")
        else:
            yield from _places(content, inner, depth + 1)
    if place:
        yield place


def _fields(record: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """The fields of a message: their numbers, and the bytes of those that are length-delimited."""
    at = 0
    while at < len(record):
        key, at = _varint(record, at)
        number, wire = key >> 3, key & 7
        content: Any = None
        if wire == _VARINT:
            _, at = _varint(record, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _RECORD:
            length, at = _varint(record, at)
            content = record[at : at + length]
            at += length
        else:
            raise ValueError(f"a record has a field of the unknown form {wire}")
        if at > len(record):
            raise ValueError("a record ends before its last field")
        yield number, content


def _varint(record: memoryview, at: int) -> tuple[int, int]:
    """A varint and the offset of its end."""
    value = 0
    for shift in range(0, 70, 7):
        byte = record[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has no end")
