"""Linear layers of an ONNX graph in 8 bits, with a scale for every token.

`quantize_dynamic` of ONNX Runtime gives all of a batch's activations one scale, so that the answer to a post would
depend on the posts beside it. Here each token's vector x gets its own, s = max |x| / 127, and a linear layer becomes

    y = (round(x / s) · W) · w · s,        W = round(weights / w) with a scale w for every output:

Products are in 8 bits, the result does not depend on the batch, and rounding errors are smaller.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hub_card.onnx.onnx_model import WEIGHTS, require
from modeling_ita.whole_files import working_folder


def quantize_graph(file: Path) -> None:
    """Quantizes the linear layers of an fp32 graph in place; the last one, the classifier, stays in fp32.

    Args:
        file: the graph, with its weight file beside it if it has one.

    Raises:
        ImportError: onnx or onnxruntime is not installed; the message gives the command.
    """
    onnx, quantization = require("onnx"), require("onnxruntime.quantization")
    large = file.with_name(WEIGHTS).exists()
    with working_folder(file) as place:
        quantization.quantize_dynamic(
            file,
            place / "int8.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=[_last_product(onnx.load(str(file), load_external_data=False).graph)],
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            # CPUs without 8-bit dot products add two products in 16 bits, which cannot overflow with 7-bit weights.
            reduce_range=True,
            use_external_data_format=large,
        )
        model = onnx.load(str(place / "int8.onnx"))
        _scale_by_piece(onnx, model.graph)
        whole = place / "whole"
        whole.mkdir()
        onnx.save(model, str(whole / file.name), save_as_external_data=large, location=WEIGHTS)
        for part in whole.iterdir():
            os.replace(part, file.with_name(part.name))


def _last_product(graph: Any) -> str:
    """The name of the last matrix product before the graph's output."""
    makers = {output: node for node in graph.node for output in node.output}
    node = makers[graph.output[0].name]
    while node.op_type not in ("MatMul", "Gemm"):
        node = next(makers[name] for name in node.input if name in makers)
    return node.name


def _scale_by_piece(onnx: Any, graph: Any) -> None:
    """Gives each quantized activation a scale along its last axis, with the zero point fixed at 128."""
    constants = {
        "int8_last_axis": np.array([-1], np.int64),
        "int8_least": np.float32(1e-20),  # minimum scale, for zero vectors
        "int8_largest": np.float32(127),
        "int8_one": np.float32(1),
        "int8_zero": np.uint8(128),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    make = onnx.helper.make_node
    scales: set[str] = set()
    joined: dict[str, tuple[str, str]] = {}  # a product of both scales → the activations' and the weights'
    nodes = []
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            (x,), (quantized, scale, _) = node.input, node.output
            scales.add(scale)
            nodes += [
                make("Abs", [x], [f"{scale}_abs"]),
                make("ReduceMax", [f"{scale}_abs", "int8_last_axis"], [f"{scale}_max"]),
                make("Max", [f"{scale}_max", "int8_least"], [f"{scale}_positive"]),
                make("Div", [f"{scale}_positive", "int8_largest"], [scale]),
                make("Div", [x, scale], [f"{scale}_x"]),
                make("QuantizeLinear", [f"{scale}_x", "int8_one", "int8_zero"], [quantized]),
            ]
        elif node.op_type == "MatMulInteger":
            x, weights, _, zero = node.input
            nodes.append(make("MatMulInteger", [x, weights, "int8_zero", zero], node.output))
        elif node.op_type == "Mul" and node.input[0] in scales:
            joined[node.output[0]] = (node.input[0], node.input[1])
        elif node.op_type == "Mul" and node.input[1] in joined:
            # One scale after the other: ONNX Runtime takes the product of both for that of a scalar.
            of_pieces, of_weights = joined[node.input[1]]
            product = f"{node.output[0]}_product"
            nodes += [
                make("Mul", [node.input[0], of_weights], [product]),
                make("Mul", [product, of_pieces], node.output),
            ]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
