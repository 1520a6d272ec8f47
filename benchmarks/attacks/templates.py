"""Hostile strings in reports, checkpoints and corpora, against all that is made of templates and snippets.

    python benchmarks/attacks/templates.py [--rounds 40] [--seed 1]

*Documents*: in every round each string of a report, a corpus, a processor and a context is replaced by a hostile one
(HTML, links, table rows, fences, YAML, Jinja, Python, control characters, or a random mixture), and once more by a
harmless one in the same place. The model card, the card of a data set and of its checksums, that of a Space, the page
of a report and the sheet of contexts are made of both. Parsed, the two must be the same: the same blocks, links,
images and HTML, the same keys and types of metadata, the same Python but for its strings, the same elements and
attributes.

*Checkpoints*: code stands in every place of an exported folder that a name can stand in, and files of code lie beside
it. The folder is exported again, made a Space, exported to ONNX, and pushed to a Hub on this machine; none of it may
write the file that the code would write.
"""

from __future__ import annotations

import argparse
import ast
import copy
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from huggingface_hub import EvalResultEntry
from markdown_it import MarkdownIt
from transformers import BertConfig, BertModel, BertTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs where the project is not installed

from dataset_scripts.contexts.context_preview import Card, write_preview
from dataset_scripts.hub.dataset_card import dataset_card, merged_card
from hub_card.card.card import make_card
from hub_card.card.card_examples import run_examples, snippets
from hub_card.card.card_figure import card_figure
from hub_card.card.eval_results import write_eval_results
from hub_card.card.requirements import requirements
from hub_card.export import main
from hub_card.hub.exported_folder import export_model
from hub_card.predictions.calibration_report import calibration_report
from hub_card.report.report import make_report
from hub_card.report.report_page import write_page
from hub_card.scores.errors import EvaluatedPost, analyse
from hub_card.scores.scores import score_views
from hub_card.space.space_folder import write_space
from modeling_ita import ItaForTokenClassification, ItaPipeline, ItaProcessor
from modeling_ita.tag_scheme import Span
from modeling_ita.visual_context import VisualContext

ROOT = Path(__file__).parents[2]
VIEWS = ("T", "I+T", "wrong_image", "blank_image")
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
HOSTILE = (
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "</details><h1>x</h1>", "</style><b>", "--><i>",
    "[x](javascript:alert(1))", "![x](http://evil.example/x.png)", "[x]: http://evil.example", "x](http://evil.example",
    "<http://evil.example>", "<a href='javascript:alert(1)'>x</a>", "\" onmouseover=\"alert(1)", "' style='x",
    "<?php ?>", "<![CDATA[", "<!-- end of posts -->", "<!-- posts: -->", "&lt;b&gt; &#60;b&#62;", "{{ 7 * 7 }}",
    "```\n\n# injected\n\n```python", "````", "~~~", "a | b |\n|---|---|\n| c | d |", "|", "\\|", "\\", "`", "``x`` `",
    "*x* **y** _z_ __w__ ~~v~~", "# title", "- item", "1. item", "> quote", "---", "===", "$$x$$", "\t tabbed",
    "\n---\nlicense: mit\n---\n", "key: value", "null", "true", "1e3", "2020-01-01", "*a", "&a", "'", '"',
    "!!python/name:os.system x", "{% raw %}", "{0.__class__}", "{", "}", "%s", 'a":[],**(1 and {} or {}),"b', '"""',
    "a\x1b[31mb\x07\x00", "\u202egnp.exe", "a\u2028b\u2029c\x85d\r\ne", "\ud800", "x" * 300, "😀\u200d", "\'\'\'\n",
    "http://evil.example www.evil.example a@b.example",
)  # fmt: skip
# What a dictionary of a report has names of strangers for keys under.
FREE = {"types", "entities", "confusion", "by_type", "context", "aligners", "versions", "data"}
KEPT = {"O", "image", "test", "validation", "train", *VIEWS}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")  # within the elements of a page they turn nothing outside
_REQUIREMENT = re.compile(r"[a-z0-9-]+(([<>]=?|==)[0-9][0-9A-Za-z.]*,?)*")


class Strings:
    """Strings for strings: the same one for the same, another one for another, harmless or hostile."""

    def __init__(self, seed: int | None) -> None:
        self.random = None if seed is None else random.Random(seed)
        self.given: dict[str, str] = {}

    def __call__(self, original: str) -> str:
        """The string in the place of this one."""
        if original not in self.given:
            self.given[original] = self._next()
        return self.given[original]

    def _next(self) -> str:
        number = len(self.given)
        if self.random is None:
            return f"word{number}"
        parts = self.random.choice([1, 1, 2, 4])
        text = self.random.choice(["", " ", "\n"]).join(self.random.choices(HOSTILE, k=parts))
        text = text if text not in self.given.values() else f"{text} {number}"
        return f"x{text}" if text[0] in "/~." else text  # what begins so is a path, of which the last part is shown


def poisoned(value: Any, strings: Strings, path: tuple[str, ...] = ()) -> Any:
    """JSON values with other strings, and other keys where these are names."""
    if isinstance(value, Mapping):
        free = bool(path) and (path[-1] in FREE or (len(path) > 1 and path[-2] in ("ablation", "confusion")))
        renamed = {key: strings(key) if free and key not in KEPT else key for key in value}
        return {renamed[key]: poisoned(of, strings, (*path, key)) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [poisoned(of, strings, path) for of in value]
    return strings(value) if isinstance(value, str) else value


# --- what a document is, but for its words ---------------------------------------------------------------------------


def card_shape(text: str) -> list[Any]:
    """The metadata's keys and types, the blocks, and within them links, images, HTML and emphasis."""
    head, metadata, body = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    shape: list[Any] = [head, kind_of(yaml.safe_load(metadata))]
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body):
        if token.type == "inline":
            for part in token.children or []:
                if part.type in ("html_inline", "softbreak", "hardbreak"):
                    shape.append((part.type, part.content))
                elif part.type not in ("text", "text_special", "code_inline"):
                    shape.append((part.type, dict(part.attrs) | {"alt": ""}))
        elif token.type == "fence" and token.info == "python":
            shape.append(("python", without_strings(token.content)))
        elif token.type == "fence" and token.info == "yaml":
            shape.append(("yaml", kind_of(yaml.safe_load(token.content))))
        else:
            is_html = token.type == "html_block"
            shape.append((token.type, token.tag, token.info, token.level, token.content if is_html else ""))
    return shape


def without_strings(source: str) -> str:
    """The syntax tree of a snippet without the strings in it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def kind_of(value: Any) -> Any:
    """The keys of JSON values, and the types of the others."""
    if isinstance(value, dict):
        return {key: kind_of(of) for key, of in value.items()}
    return [kind_of(of) for of in value] if isinstance(value, list) else type(value).__name__


class _Page(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: Counter[Any] = Counter()
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        shown = ("src", "href", "class", "style", "http-equiv", "content", "id", "type")
        # Shades and classes are of the order of the types, which is that of their names.
        values = tuple(sorted((name, value) for name, value in attrs if name in shown and tag != "td"))
        self.found[(tag, tuple(sorted(name for name, _ in attrs)), values)] += 1

    def handle_endtag(self, tag: str) -> None:
        self.found[f"/{tag}"] += 1

    def handle_comment(self, data: str) -> None:
        self.found[f"<!--{data}"] += 1

    def handle_decl(self, decl: str) -> None:
        self.found[f"<!{decl}"] += 1

    def handle_pi(self, data: str) -> None:
        self.found[f"<?{data}"] += 1

    def unknown_decl(self, data: str) -> None:
        self.found[f"<![{data}"] += 1


def page_shape(source: str) -> Counter[Any]:
    """The elements of a page with their attributes, comments and declarations, as often as they are there."""
    return _Page(source).found


# --- documents -------------------------------------------------------------------------------------------------------


def base_report() -> dict[str, Any]:
    """A report with all that a report can have."""
    love, ohio = Span("PER", 1, 3), Span("LOC", 4, 5)
    words = ("hi", "Kevin", "Love", "in", "Ohio")
    views: list[Any] = [dict.fromkeys(VIEWS, of) for of in ({love: 0.9, ohio: 0.8}, {Span("ORG", 4, 5): 0.3})]
    posts = [
        EvaluatedPost("a", words, frozenset({love, ohio}), views[0], {"ocr": ["x"]}),
        EvaluatedPost("b", words, frozenset({love}), views[1], {}, PIXEL),
    ]
    gold, found = ["O", "B-PER", "I-PER", "O", "B-LOC"], ["O", "O", "O", "O", "B-ORG"]
    scores = score_views([gold, gold], {view: [gold, found] for view in VIEWS})
    split = {"posts": 2, "words": 10, "entities": {"PER": 2, "LOC": 2}, "tags_repaired": 1}
    split |= dict.fromkeys(
        ("posts_empty", "ids_repeated", "words_invisible", "carriage_returns", "byte_order_marks"), 1
    )
    split["images"] = dict.fromkeys(("present", "missing", "unreadable", "blank", "shared"), 1)
    split["contexts"] = dict.fromkeys(("present", "empty", "missing"), 1)
    made = make_report(
        name="a run",
        scores={"test": scores},
        counts={"corpus": {"configuration": "conll", "splits": {"test": split}}, "processor": {}},
        data={"/somewhere/test.txt": {"sha256": "a7d9e172" * 8, "known_as": "a corpus"}},
        command="python train.py",
        history={
            "steps": [{"step": i, "text_loss": 9.0 / i} for i in (1, 2, 3)],
            "evaluations": [{"epoch": 1, "T": 0.5, "I+T": 0.25, "best": True}],
        },
        config={"dataset": "conll", "encoder": "a/bert", "views": "both", "seed": 7, "data_dir": "data", "name": "x"},
        config_defaults={"encoder": "b/bert", "views": "text", "seed": 1, "name": "y"},
        aligners={"ocr": {"model": "rapidocr", "revision": "3.1", "settings": {"min_side": 3, "text": "x"}}},
    )
    made |= {"ablation": {"test": {"captions": scores["T"], "ocr": scores["T"]}}, "created": "2026-01-01"}
    made["errors"] = {"test": {view: analyse(posts, view, {"ohio"}) for view in VIEWS}}
    made["calibration"] = {"test": calibration_report(posts, posts, 1.25)}
    return made | {"posts": posts}


def documents(pipe: ItaPipeline, place: Path, seed: int | None) -> Iterator[tuple[str, str, Any]]:
    """Everything that is made of templates, of the strings of this seed: its name, its text, its shape."""
    place.mkdir(parents=True, exist_ok=True)
    strings = Strings(seed)
    base = base_report()
    posts = base.pop("posts")
    report = poisoned({key: value for key, value in base.items() if key != "signatures"}, strings)
    processor = copy.copy(pipe.processor)
    # Past the checks of names, which would refuse most of them.
    processor.context_kinds = [strings("knowledge"), strings("ocr")]
    recipe = {"model": strings("m"), "revision": strings("3.1"), "settings": {strings("key"): strings("value")}}
    processor.context_builder = {strings("ocr"): recipe, strings("captions"): strings("a/captioner")}
    poisoned_pipe = ItaPipeline(model=pipe.model, processor=copy.copy(pipe.processor), device="cpu")
    poisoned_pipe.processor = processor
    card = make_card(
        model_id="you/ita", revision="main", pipe=poisoned_pipe, report=report, license=strings("mit"),
        language=[strings("de"), strings("fr")], datasets=[strings("me/posts")],
    )  # fmt: skip
    yield "model card", card.content, card_shape(card.content)
    code = "\n".join(snippets(poisoned_pipe, "you/ita", strings("main")).values())
    yield "snippets", "", without_strings(code)
    lines = requirements(processor.context_builder)
    yield "requirements", "\n".join(lines), all(map(_REQUIREMENT.fullmatch, lines))
    entry = EvalResultEntry(dataset_id=strings("corpus"), task_id="t", value=0.5, notes=strings("notes"))
    results = write_eval_results(place, [entry]).read_text(encoding="utf-8")
    yield "eval results", results, kind_of(yaml.safe_load(results))
    card_figure(report, place / "report.png", "test")

    shown = [
        EvaluatedPost(
            strings(post.id),
            tuple(map(strings, post.words)),
            frozenset(Span(strings(s.type), s.start, s.end) for s in post.gold),
            {v: {Span(strings(s.type), s.start, s.end): p for s, p in of.items()} for v, of in post.views.items()},
            {strings(kind): list(map(strings, texts)) for kind, texts in post.context.items()},
            post.thumbnail,
        )
        for post in posts
    ]
    write_page(report, {"test": shown}, place / "report.html")
    page = (place / "report.html").read_text(encoding="utf-8")
    yield "report page", page, page_shape(page)
    cards = [
        Card(strings("id"), PIXEL, "", {strings("ocr"): [(strings("text"), 0.5)]}),
        Card("x", "", strings("f"), {}),
    ]
    aligners = {strings("ocr"): {"model": strings("m"), "revision": strings("r")}}
    write_preview(place / "contexts.html", cards, aligners, {"images": 2, strings("counted"): 1})
    page = (place / "contexts.html").read_text(encoding="utf-8")
    yield "contexts page", page, page_shape(page)

    corpus = poisoned(base["counts"]["corpus"], strings, ("counts",)) | {"data": report["data"]}
    provenance = {"ocr": {"model": strings("m"), "revision": strings("r"), "settings": {strings("k"): strings("v")}}}
    labels = ["O", *(f"B-{strings(name)}" for name in ("PER", "LOC"))]
    for part in ("posts", "checksums"):
        made = dataset_card(
            "me/posts", corpus, labels, [VisualContext({"ocr": ["x"]}, provenance)] if part == "posts" else [],
            part=part, license=strings("mit"), language=strings("de"),
        )  # fmt: skip
        yield f"data set card, {part}", made.content, card_shape(made.content)
        again = merged_card(made.content, made, part).text == made.text
        yield f"data set card, {part}, pushed again", "", again
    config = {"context_builder": processor.context_builder}
    space = write_space(str(place), place / "space", title=strings("title"), processor_config=config)
    readme = (space / "README.md").read_text(encoding="utf-8")
    yield "Space card", readme, card_shape(readme)


class Result(NamedTuple):
    """One attack: what was attacked, and what went wrong; nothing if it held."""

    what: str
    fault: str


def attack_documents(pipe: ItaPipeline, place: Path, seeds: Iterable[int]) -> list[Result]:
    """All documents of the hostile strings of each seed, compared with those of harmless strings."""
    tame = {name: shape for name, _, shape in documents(pipe, place / "tame", None)}
    results: list[Result] = []
    for seed in seeds:
        try:
            for name, text, shape in documents(pipe, place / str(seed), seed):
                fault = _difference(tame[name], shape)
                if control := _CONTROL.search(text) or ("page" not in name and _TURNING.search(text)):
                    fault = f"a control character in {text[max(0, control.start() - 40) : control.end() + 40]!r}"
                results.append(Result(f"{name}, seed {seed}", fault))
        except Exception as error:
            results.append(Result(f"a document of seed {seed}", f"{type(error).__name__}: {error}"))
    return results


def _difference(tame: Any, hostile: Any) -> str:
    if tame == hostile:
        return ""
    if isinstance(tame, Counter):
        tame, hostile = tame - hostile, hostile - tame
    elif isinstance(tame, list):
        pairs = zip(tame, hostile, strict=False)
        tame, hostile = next(((a, b) for a, b in pairs if a != b), (len(tame), len(hostile)))
    return f"{hostile!r} in the place of {tame!r}"


# --- checkpoints -----------------------------------------------------------------------------------------------------


def payloads(sentinel: Path) -> list[str]:
    """Code that writes a file, in the languages that a string could end up in."""
    write, touch = f"open({str(sentinel)!r}, 'w')", f"touch {sentinel}"
    return [
        f'a":[],**({write} and {{}} or {{}}),"b',
        f"' + str({write}) + '",
        f"{{{{ cycler.__init__.__globals__.os.popen('{touch}').read() }}}}",
        f"$({touch})",
        f'!!python/object/apply:os.system ["{touch}"]',
        f"evil @ file://{sentinel.parent}/evil",
    ]


def hostile_folders(exported: Path, place: Path, sentinel: Path) -> Iterator[tuple[str, Path]]:
    """Copies of an exported folder with code in every place that a name can stand in."""

    def change(file: str, edit: Callable[[dict[str, Any], str], Any]) -> Callable[[Path, str], None]:
        def changed(folder: Path, payload: str) -> None:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
            edit(content, payload)
            (folder / file).write_text(json.dumps(content), encoding="utf-8")

        return changed

    processor, config = "processor_config.json", "config.json"
    recipe = lambda text: {"ocr": {"model": "rapidocr", "revision": text, "settings": {"min_side": 1, text: text}}}  # noqa: E731
    places = {
        "context_kinds": change(processor, lambda c, p: c.update(context_kinds=[p])),
        "separate_kinds": change(processor, lambda c, p: c.update(separate_kinds=[p])),
        "kind of context_builder": change(processor, lambda c, p: c.update(context_builder={p: "rapidocr"})),
        "aligner": change(processor, lambda c, p: c.update(context_builder={"ocr": p})),
        "own code": change(processor, lambda c, p: c.update(context_builder={"ocr": "evil:run"})),
        "settings": change(processor, lambda c, p: c.update(context_builder=recipe(p))),
        "entity type": change(config, lambda c, p: c["id2label"].update({"1": f"B-{p}", "2": f"I-{p}"})),
        "model_type": change(config, lambda c, p: c["text_config"].update(model_type=p)),
        "attention": change(config, lambda c, p: c.update(attn_implementation=p)),
        "auto_map": change(
            config,
            lambda c, _: (
                c.update(
                    auto_map={"AutoConfig": "evil.Evil", "AutoModelForTokenClassification": "evil.Evil"},
                    custom_pipelines={"ner": {"impl": "pipeline_ita.ItaPipeline"}, "x": {"impl": "evil.Evil"}},
                )
                or c["text_config"].update(auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
            ),
        ),
        "auto_map of processor": change(processor, lambda c, _: c.update(auto_map={"AutoProcessor": "evil.Evil"})),
        "auto_map of tokenizer": change(
            "tokenizer_config.json",
            lambda c, _: c.update(auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_class="Evil"),
        ),
    }
    for name, write in places.items():
        takes_text = not name.startswith(("auto_map", "own"))
        for n, payload in enumerate(payloads(sentinel) if takes_text else [""]):
            folder = place / f"{name.replace(' ', '-')}-{n}"
            shutil.copytree(exported, folder)
            for code in (*folder.glob("*.py"), folder / "evil.py"):
                code.write_text(f"open({str(sentinel)!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
            write(folder, payload)
            yield f"{name} {n}", folder


def attack_checkpoint(name: str, folder: Path, sentinel: Path, routes: Sequence[str]) -> list[Result]:
    """One folder by the routes `export`, `isolated`, `space` and `onnx`, in this process."""
    results = []
    for route in routes:
        out = folder.with_name(f"{folder.name}-{route}")
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            if route in ("space", "onnx"):
                main([route, str(folder), str(out)])
            else:
                with suppress(Exception):  # refused
                    model = ItaForTokenClassification.from_pretrained(folder)
                    processor = ItaProcessor.from_pretrained(folder, trust_remote_code=False)
                    pipe = ItaPipeline(model=model, processor=processor, device="cpu")
                    if route == "export":
                        run_examples(pipe, "you/ita", "main")
                    export_model(model, processor, out, examples="isolated" if route == "isolated" else "none")
        fault = "its code ran" * sentinel.exists()
        sentinel.unlink(missing_ok=True)
        if not fault and route == "space" and out.exists():
            lines = (out / "requirements.txt").read_text(encoding="utf-8").splitlines()
            fault = "" if all(map(_REQUIREMENT.fullmatch, lines)) else f"it wrote the requirements {lines}"
        results.append(Result(f"{name}, {route}", fault))
    return results


def attack_push(folders: Mapping[str, Path], sentinel: Path, home: Path) -> list[Result]:
    """Folders pushed to a Hub on this machine."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from forked import run_python
    from loopback_hub import LoopbackHub

    results = []
    with LoopbackHub() as hub:
        for n, (name, folder) in enumerate(folders.items()):
            command = ["-m", "hub_card.export", "push", str(folder), f"me/model{n}"]
            done = run_python(command, hub.environment(home), [ROOT])
            fault = "its code ran" * sentinel.exists()
            if done.returncode not in (0, 2):
                fault = f"status {done.returncode}: {done.stderr[-300:]}"
            sentinel.unlink(missing_ok=True)
            results.append(Result(f"{name}, push", fault))
    return results


def tiny_pipe(folder: Path) -> ItaPipeline:
    """A small random model, of which entities come."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *map(chr, range(33, 127)),
        *(f"##{chr(c)}" for c in range(33, 127)),
    ]
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=128)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    labels = ["O", *(f"{prefix}-{name}" for name in ("PER", "LOC", "ORG", "MISC") for prefix in "BI")]
    model = ItaForTokenClassification.from_text_encoder(str(folder), labels).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.7)
    return ItaPipeline(model=model, processor=ItaProcessor(tokenizer), device="cpu")


def run(arguments: Sequence[str] | None = None) -> int:
    """The attack; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="sets of hostile strings, each for all documents")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.stdin = io.StringIO()  # nobody is there to say yes
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pipe = tiny_pipe(place / "encoder")
        results += attack_documents(pipe, place / "documents", range(args.seed, args.seed + args.rounds))
        print(f"documents: {len(results)}", flush=True)
        sentinel = place / "sentinel"
        exported = export_model(pipe.model, pipe.processor, place / "model")
        folders = dict(hostile_folders(exported, place / "folders", sentinel))
        for n, (what, folder) in enumerate(folders.items()):
            routes = ("export", "space", *["onnx"] * what.endswith(" 0"), *["isolated"] * (n % 12 == 0))  # slow ones
            results += attack_checkpoint(what, folder, sentinel, routes)
        results += attack_push(dict(list(folders.items())[::12]), sentinel, place / "home")
    failed = [result for result in results if result.fault]
    for result in failed[:20]:
        print(f"FAILED {result.what}: {result.fault!a:.600}")
    print(f"tried {len(results)}, held {len(results) - len(failed)}, failed {len(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(run())
