"""What a model is worth, and how it gets out: scores, reports, cards, the Hub, serving.

On top stands what one runs: `evaluation`, `predict`, `export` and `convert_mgcmt`. The folders hold what these are
made of; a folder imports only from those named before it:

- `scores`: from tags to numbers, without a model;
- `predictions`: from a model to tags and scored entities, and the evaluation of a model in every view;
- `report`: the report of a run, its page and figure, comparisons, mean and deviation over runs;
- `card`: the model card and what stands in it;
- `hub`: the exported folder, the push, the handler of an Inference Endpoint;
- `onnx`: the model for ONNX Runtime;
- `space`: the page to try a model on.
"""
