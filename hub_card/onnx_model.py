"""The name in version 0.1 of `hub_card.onnx.onnx_model`."""

from hub_card.onnx.onnx_model import OnnxItaForTokenClassification

__all__ = ["OnnxItaForTokenClassification"]
