"""Hostile calls to the Space, as a program makes them: what is held is an answer or a refusal in words, and no fault.

    python benchmarks/attacks/space.py

The page of a tiny random model is served on this machine's loopback address. Each call is a post, an image and what is
said of it, drawn from values that break things: lone surrogates, nothing in the place of text, other types, damaged
images, broken data URLs, too many characters, deep nesting. A call is held if the page answers it, or refuses it in
words, within 30 seconds; no answer may hold the post's markup; and the page must label a post as before when all is
over. The last line gives the figures.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import string
import sys
import tempfile
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
POST = "Phoenix Suns tonight, Obama in Paris"
PATIENCE = 30  # seconds
MARKUP = "<img src=x onerror=alert(1)>"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="how many (default: %(default)s)")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", NO_PROXY="127.0.0.1,localhost")
    sys.path.insert(0, str(ROOT))
    from hub_card.space import app

    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = app.build_page(tiny_pipe(), MARKUP)
        _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, server_name="127.0.0.1")
        address = address.rstrip("/")
        try:
            before = call(address, "label", [POST, None, "", "", ""])
            draw = random.Random(0)
            failed = sum(not held(address, draw) for _ in range(options.calls))
            failed += call(address, "label", [POST, None, "", "", ""]) != before
        finally:
            page.close()
    tried = options.calls + 1
    print(f"tried {tried}, held {tried - failed}, failed {failed}")
    return int(failed > 0)


def tiny_pipe() -> Any:
    """The pipeline of a tiny random ITA, which reads "NBA" off every image."""
    import torch
    from transformers import BertConfig, BertTokenizer

    from modeling_ita import ItaConfig, ItaForTokenClassification, ItaPipeline, ItaProcessor, VisualContextBuilder

    torch.manual_seed(0)
    characters = [c for c in string.printable if not c.isspace()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    tokenizer = BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=512)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BertConfig(vocab_size=len(pieces), intermediate_size=32, **sizes)
    model = ItaForTokenClassification(ItaConfig(text_config=text)).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.7)
    pipe = ItaPipeline(model=model, processor=ItaProcessor(tokenizer), device="cpu")
    pipe.context_builder = VisualContextBuilder(ocr=lambda images: [["NBA"]] * len(images))
    return pipe


def texts(draw: random.Random) -> Any:
    """A text of a post or of a box, or what stands in its place."""
    nested: Any = "x"
    for _ in range(draw.choice((1, 50, 500))):
        nested = [nested]
    return draw.choice(
        [
            POST, "", None, "\ud83d", "Obama \udc00 in \ud800", "\x00", "a\x1b[2J\x07b", MARKUP + " Obama",
            "a" * 100_000,
            " ".join("x" * 2_400), "😀" * 500, "\u202e" + POST, "́" * 1_000, "\n" * 4_000, 7, 1e308, True, [POST],
            {"text": POST}, nested, {"__type__": "update", "value": POST}, "}{'\"\\", "Ａ" * 100, "\ufeff", "\u2028a",
        ]
    )  # fmt: skip


def images(draw: random.Random) -> Any:
    """What is sent in the place of an image."""
    from PIL import Image

    picture = BytesIO()
    Image.new("RGB", (64, 48), draw.choice(["white", "red"])).save(picture, "PNG")
    whole = picture.getvalue()
    cut = whole[: draw.randrange(len(whole))]
    flipped = bytearray(whole)
    flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)

    def url(content: bytes, kind: str = "image/png") -> dict[str, Any]:
        return {
            "url": f"data:{kind};base64,{base64.b64encode(content).decode()}",
            "meta": {"_type": "gradio.FileData"},
        }

    return draw.choice(
        [
            None, None, url(whole), url(cut), url(bytes(flipped)), url(b""), url(b"GIF89a" + bytes(50), "image/gif"),
            url(b"<svg onload='alert(1)'/>", "image/svg+xml"), {"url": "data:image/png;base64,!!!"}, {"url": "data:"},
            {"url": "data:image/png,abc"}, {"url": "data:image/png;base64,A"}, {"url": ""}, {"path": "/etc/passwd"},
            {"path": "../../etc/passwd"}, {"path": "gone.png"}, {"path": ""}, {"path": 5}, {}, [], "x", 7, {"url": 7},
            {"url": "data:image/png;base64," + "A" * 200_000},
        ]
    )  # fmt: skip


def held(address: str, draw: random.Random) -> bool:
    """Whether one drawn call is held."""
    name = draw.choice(["label", "relabel"])
    boxes = [texts(draw) for _ in range(3)]
    data = [texts(draw), *([images(draw)] if name == "label" else []), *boxes]
    if draw.random() < 0.1:
        data = data[: draw.randrange(len(data))]
    try:
        event, answer = call(address, name, data)
    except Exception as error:
        print(f"FAILED  {name} {data!r:.200}: {type(error).__name__}: {error}")
        return False
    said = json.dumps(answer)
    if event == "complete":
        shown = answer[2]
        is_held = isinstance(shown, str) and MARKUP not in shown and "Traceback" not in said
    else:
        is_held = event in ("error", "refused") and "Traceback" not in said and "internal error" not in said
    if not is_held:
        print(f"FAILED  {name} {data!r:.200}: {event} {said:.300}")
    return is_held


def call(address: str, name: str, data: list[Any]) -> tuple[str, Any]:
    """The last event of a call and its data; `refused` with the message where the page takes no such call."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/gradio_api/call/{name}", json.dumps({"data": data}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            event = json.load(answer)["event_id"]
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise
        return "refused", error.read().decode()
    with urllib.request.urlopen(f"{address}/gradio_api/call/{name}/{event}", timeout=PATIENCE) as stream:
        kind, line = stream.read().decode().strip().split("\n\n")[-1].split("\n")
    return kind.removeprefix("event: "), json.loads(line.removeprefix("data: "))


if __name__ == "__main__":
    sys.exit(main())
