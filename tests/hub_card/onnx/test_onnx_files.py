"""A graph reads the weights beside it, and no other file."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from hub_card.onnx.onnx_files import external_data
from hub_card.onnx.onnx_model import CRF, GRAPH, WEIGHTS, OnnxItaForTokenClassification
from modeling_ita import ItaForTokenClassification

onnx = pytest.importorskip("onnx")


def graph(location: str, length: int = 16, inside_a_node: bool = False) -> bytes:
    """A graph whose one tensor lies in a file; on request deep in the attribute of a node."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    value = onnx.helper.make_tensor_value_info("y", 1, [4])
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    outer = onnx.helper.make_graph([node], "inner", [], [value]) if inside_a_node else None
    nodes = [onnx.helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=outer)] if outer else []
    made = onnx.helper.make_graph(nodes, "g", [], [value], [] if outer else [tensor])
    return onnx.helper.make_model(made).SerializeToString()


@pytest.mark.parametrize("inside_a_node", [False, True])
def test_places_of_tensors_are_found_wherever_they_stand(inside_a_node: bool) -> None:
    found = list(external_data(graph("../x", inside_a_node=inside_a_node)))
    assert found == [{"location": "../x", "offset": "0", "length": "16"}] * (1 + inside_a_node)


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x3a\xff\x01", graph("x")[:-7]])
def test_what_is_no_graph_is_refused(content: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        list(external_data(content))


@pytest.mark.parametrize(
    ("location", "length", "message"),
    [
        ("../secret", 16, "reads the file '../secret'"),
        ("/etc/passwd", 16, "reads the file '/etc/passwd'"),
        ("config.json", 16, "reads the file 'config.json'"),
        (WEIGHTS, 17, "ends before"),
        (WEIGHTS, -1, "ends before"),
    ],
)
def test_a_graph_that_reads_elsewhere_is_refused(
    tiny_model: ItaForTokenClassification, tmp_path: Path, location: str, length: int, message: str
) -> None:
    tiny_model.config.save_pretrained(tmp_path)
    scores = {name: scores.detach().clone() for name, scores in tiny_model.crf.named_parameters()}
    save_file(scores, tmp_path / CRF)
    (tmp_path / WEIGHTS).write_bytes(bytes(16))
    (tmp_path / GRAPH).write_bytes(graph(location, length))
    with pytest.raises(ValueError, match=message):
        OnnxItaForTokenClassification.from_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / WEIGHTS).symlink_to("/etc/passwd")
    (tmp_path / GRAPH).write_bytes(graph(WEIGHTS))
    with pytest.raises(ValueError, match="a link out of its folder"):
        OnnxItaForTokenClassification.from_pretrained(tmp_path)
