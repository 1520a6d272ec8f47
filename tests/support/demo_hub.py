"""The whole trip of a model, shown: pushed to a Hub on this machine, loaded by a process that knows nothing of it.

python tests/demo_hub.py outputs/quickstart/model
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopback_hub import ROOT, LoopbackHub, run_client
from stranger import run_stranger

IMAGES = ROOT / "dataset_scripts" / "sample_posts" / "images"
REPOSITORY = "me/ita"

LOAD = """
import json, sys
from transformers import pipeline
from transformers.utils import logging

logging.disable_progress_bar()
repository, folder, post, *images = sys.argv[1:]

def label(model, **settings):
    pipe = pipeline("token-classification", model=model, trust_remote_code=True, device="cpu", **settings)
    return [pipe(item, return_context=True) for item in [post, *({"text": post, "image": image} for image in images)]]

try:
    refused = label(repository, token=False)
except OSError as error:
    refused = str(error).splitlines()[0]
print("FOUND" + json.dumps([label(repository), label(folder), refused]))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="an exported folder")
    parser.add_argument("--post", default="my whole feed is Alexandria rn")
    parser.add_argument("--image", action="append", help="default: two of the sample posts'")
    args = parser.parse_args(arguments)
    images = args.image or [str(IMAGES / name) for name in ("valid-007.jpg", "valid-014.jpg")]
    with LoopbackHub() as hub, tempfile.TemporaryDirectory() as homes:
        say(f"1. Push {args.folder} to a Hub on this machine, as a private repository")
        push = ["-m", "hub_card.export", "push", args.folder, REPOSITORY, "--private"]
        print(run_client(push, hub.environment(Path(homes, "pusher"))).strip())
        files = hub.repositories[f"models/{REPOSITORY}"].at("main").files
        own = [name for name in sorted(files) if name != ".gitattributes"]
        say(f"2. What lies there: {len(own)} files")
        print("\n".join(f"{len(files[name].content):>12,} bytes  {name}" for name in own))
        say("3. A fresh process, nothing of this project installed: three lines")
        loading = [REPOSITORY, str(Path(args.folder).resolve()), args.post, *images]
        said = run_stranger(LOAD, loading, hub.environment(Path(homes, "stranger")))
        from_hub, local, refused = json.loads(said.rpartition("FOUND")[2])
        for name, result in zip(["the post alone", *(Path(image).name for image in images)], from_hub, strict=True):
            print(f"{name}: {args.post}")
            for entity in result["entities"] or [{"word": "(nothing)", "entity_group": "", "score": 0.0}]:
                print(f"    {entity['word']} {entity['entity_group']} {entity['score']:.3f}")
            for kind, texts in (result["context"] or {}).items():
                if kind != "provenance":
                    print(f"    {kind}: {' | '.join(texts)}")
        same = entities(local) == entities(from_hub)
        say(f"4. These are {'the same entities as' if same else 'OTHER entities than'} from the folder")
        say("5. The same without a token")
        print(refused)
        kinds = ("GET", "HEAD", "POST", "PUT")
        counts = {kind: sum(asked.startswith(kind) for asked in hub.requests) for kind in kinds}
        say("The Hub was asked: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return 0 if same else 1


def say(line: str) -> None:
    print(f"\n{line}", flush=True)


def entities(results: list[dict[str, Any]]) -> list[list[tuple[Any, ...]]]:
    keys = ("entity_group", "word", "start", "end")
    return [
        [(*(entity[key] for key in keys), round(entity["score"], 4)) for entity in result["entities"]]
        for result in results
    ]


if __name__ == "__main__":
    sys.exit(main())
