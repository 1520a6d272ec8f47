"""The page of a report: what it shows, what it leaves out, and that nothing in the data can make it misbehave."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_card.predictions.calibration_report import calibration_report
from hub_card.predictions.image_gate import GatedPosts, fit_image_gate, image_gate_report
from hub_card.report.gate_text import gate_sentences
from hub_card.report.report import complete_report, counts_of, format_f1, make_report
from hub_card.report.report_page import write_page
from hub_card.report.svg_charts import Series, line_chart
from hub_card.scores.errors import EvaluatedPost, analyse
from hub_card.scores.scores import score_views
from modeling_ita.tag_scheme import Span

VIEWS = ("T", "I+T", "wrong_image", "blank_image")
SHA256 = "a7d9e172" * 8
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
HOSTILE = """<script>alert(1)</script>"' onload='x' &amp; </style>"""
SECTIONS = (
    "What an image is worth",
    "Context, one kind removed",
    "Types",
    "Training",
    "Calibration",
    "Errors",
    "Posts",
    "Provenance",
)


def post(id: str, words: str, gold: Sequence[Span], views: dict[str, dict[Span, float]], **more: Any) -> EvaluatedPost:
    everywhere = {view: views.get(view, views.get("T", {})) for view in VIEWS}
    return EvaluatedPost(id, tuple(words.split(" ")), frozenset(gold), everywhere, more.pop("context", {}), **more)


LOVE, OHIO = Span("PER", 1, 3), Span("LOC", 4, 5)
POSTS = [
    post(
        "right", "hi Kevin Love in Ohio", [LOVE, OHIO], {"T": {LOVE: 0.9, OHIO: 0.8}, "I+T": {LOVE: 0.95, OHIO: 0.8}}
    ),
    post(
        "image helps",
        "hi Kevin Love in Ohio",
        [LOVE, OHIO],
        {"T": {Span("PER", 1, 2): 0.4}, "I+T": {LOVE: 0.7, Span("ORG", 4, 5): 0.3}},
        context={"captions": ["a man with a ball"], "ocr": []},
        thumbnail=PIXEL,
    ),
    post("nothing", "nothing here", [], {}),
]


def tags(words: Sequence[str], spans: Sequence[Span]) -> list[str]:
    found = ["O"] * len(words)
    for kind, start, end in spans:
        found[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return found


def report(posts: Sequence[EvaluatedPost] = POSTS, **changes: Any) -> dict[str, Any]:
    gold = [tags(p.words, sorted(p.gold)) for p in posts]
    predicted = {view: [tags(p.words, sorted(p.views[view])) for p in posts] for view in VIEWS}
    scores = score_views(gold, predicted)
    made = make_report(
        name="a run",
        scores={"test": scores},
        counts={"truncated": 2},
        data={"test": {"sha256": SHA256, "known_as": "twitter2017-umt test"}},
        command="python train.py --seed 7",
        history={
            "steps": [{"step": i, "text_loss": 9.0 / i, "cross_loss": 8.0 / i, "cva_loss": None} for i in (1, 2, 3)],
            "evaluations": [{"epoch": 1, "T": 0.5, "I+T": 0.25}, {"epoch": 2, "T": 0.6, "I+T": None}],
        },
        config={"seed": 7},
        gold={"test": {"sha256": SHA256, "known_as": "twitter2017-umt test", "repaired": 0}},
    )
    made["ablation"] = {"test": {"captions": scores["T"]}}
    made["errors"] = {"test": {view: analyse(posts, view, {"ohio"}) for view in VIEWS}}
    made["calibration"] = {"test": calibration_report(posts, posts, 1.25)}
    return made | changes


class Page(HTMLParser):
    """The tags with their attributes, and the text outside style and script."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.text, self._open = source, "", ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open not in ("style", "script"):
            self.text += f" {data} "

    @property
    def cards(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "article"]

    @property
    def sections(self) -> list[str]:
        return re.findall(r"<section><h2>([^<]*)</h2>", self.source)


def page(tmp_path: Path, made: dict[str, Any], posts: Sequence[EvaluatedPost] = POSTS, **settings: Any) -> Page:
    path = tmp_path / "new" / "report.html"
    write_page(made, {"test": posts}, path, **settings)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_every_section_is_there_with_its_data(tmp_path: Path) -> None:
    shown = page(tmp_path, report())
    assert shown.sections == list(SECTIONS)
    for said in (
        "Temperature 1.250",
        "Reliability, I+T",
        "Training losses",
        "F1 on valid",
        "F1 by type",
        "unseen in train",
    ):
        assert said in shown.text
    assert "a run" in shown.text
    assert "python train.py --seed 7" in shown.text
    assert SHA256 in shown.text


def test_a_model_that_looks(tmp_path: Path) -> None:
    made = report()
    scored = made["scores"]["test"]["T"]
    steps = [{"step": n, "loss": 9.0 / n, "main_loss": 8.0 / n, "aux_loss": 2.0 / n} for n in (1, 2, 3)]
    looks = made | {"ablation": {"test": {"object_tags": scored, "image": scored}}, "history": {"steps": steps}}
    shown = page(tmp_path, looks)
    assert "Image and context, one of them removed" in shown.sections and "without image" in shown.text
    assert "all kinds" not in shown.text and "Without the image itself its context is still there" in shown.text
    assert "Training losses" in shown.text and "spans (auxiliary)" in shown.text
    # Without the image alone: that is the view T, which is there already.
    shown = page(tmp_path, made | {"ablation": {"test": {"image": scored}}})
    assert not any("removed" in section for section in shown.sections)


def test_how_many_pictures_must_be_read(tmp_path: Path) -> None:
    made = report()
    name = "How many pictures must be read"
    counts = [counts_of(made["scores"]["test"][view]) for view in ("T", "I+T")]
    posts = GatedPosts(np.array([0.2, 0.9, 0.5]), np.array([True, True, False]), *counts)
    gate = image_gate_report(posts, fit_image_gate(posts))
    assert gate is not None and gate["is_worth_it"] and gate["chosen"]["share"] == 0.5
    made["image_gate"] = {"validation": gate, "test": gate}
    shown = page(tmp_path, made)
    assert shown.sections == [*SECTIONS[:2], name, *SECTIONS[2:]]
    assert " ".join(gate_sentences(complete_report(made))) in shown.text
    assert "Reading 50 % of the pictures gives F1 75.0; reading all 75.0, none 57.1 (validation)." in shown.text
    section = shown.source[shown.source.index(f"<h2>{name}") :].partition("</section>")[0]
    for split in ("validation", "test"):
        assert f"<figcaption>F1 by the share of pictures read, {split}</figcaption>" in section
    assert section.count('opacity="0.15"') == section.count("<circle") == section.count("image_gate: 50 % read") == 2
    assert "exceeds image_gate, 0.55 as fitted on validation" in shown.text

    # Worth nothing; and a split without a picture has no chart.
    reversed_posts = GatedPosts(posts.least_confidence, posts.has_image, posts.seen, posts.alone)
    made["image_gate"] = {"validation": image_gate_report(reversed_posts, 1.0)}
    shown = page(tmp_path, made)
    assert "On validation the picture was worth nothing: T 75.0, I+T 57.1;" in shown.text
    assert shown.source.count("F1 by the share of pictures read, test") == 0
    for nothing in ({}, None, {"test": gate}):  # nothing was fitted
        assert page(tmp_path, made | {"image_gate": nothing}).sections == list(SECTIONS)


@pytest.mark.parametrize(
    ("field", "section"),
    [
        ("ablation", "Context, one kind removed"),
        ("history", "Training"),
        ("calibration", "Calibration"),
        ("errors", "Errors"),
    ],
)
def test_a_section_without_data_is_left_out(tmp_path: Path, field: str, section: str) -> None:
    made = report()
    for lacking in ({key: value for key, value in made.items() if key != field}, made | {field: {}}):
        assert page(tmp_path, lacking).sections == [name for name in SECTIONS if name != section]


def test_report_of_an_older_version(tmp_path: Path) -> None:
    made = report()
    view = {key: value for key, value in made["scores"]["test"]["T"].items() if key != "post_counts"}
    shown = page(tmp_path, {"name": "old", "data": {}, "scores": {"test": {"T": view}}}, posts=[])
    assert shown.sections == ["What an image is worth", "Types"]
    assert "<script" not in shown.source
    assert "gap to" not in shown.text


def test_scores_are_those_of_the_report(tmp_path: Path) -> None:
    made = report()
    shown = page(tmp_path, made)
    for scored in made["scores"]["test"].values():
        assert format_f1(scored).replace(" [", "  [").split("  ")[1] in shown.text
    columns = [made["scores"]["test"][view] for view in ("I+T", "T", "wrong_image", "blank_image")]
    for name, reading, key in (
        ("P", "lenient", "precision"),
        ("R", "lenient", "recall"),
        ("strict F1", "strict", "f1"),
    ):
        assert " ".join([f" {name}", *(f"{100 * scored[reading][key]:.1f}" for scored in columns)]) in shown.text
    for line in {
        line.replace(f"view:{v}|", "") for v, both in made["signatures"]["test"].items() for line in both.values()
    }:
        assert line in shown.text
    heads = [
        shown.text.index(head) for head in ("right image I+T", "no image T", "wrong image wrong", "blank image blank")
    ]
    assert heads == sorted(heads)
    # I+T finds 3 of 4 entities with 4 predictions, T 2 of 4 with 3.
    assert "In points of F1, the right image is worth +17.9 [" in shown.text
    kinds = made["errors"]["test"]["I+T"]["kinds"]
    assert f"I+T {' '.join(map(str, kinds.values()))}" in shown.text.split("Kinds, by view")[1]
    assert list(kinds.values()) == [3, 0, 1, 0, 0, 0]


def test_views_side_by_side(tmp_path: Path) -> None:
    source = page(tmp_path, report()).source
    card = source[source.index('data-id="image helps"') : source.index('data-id="right"')]
    text, both = card.split("<h4>I+T</h4>")
    assert '<mark class="wrong"><u>Kevin</u> <small>✗ PER 0.40</small></mark>' in text
    assert '<u>Love</u> <span class="missed">PER missed</span>' in text
    assert '<u>Ohio</u> <span class="missed">LOC missed</span>' in text
    assert '<mark class="right"><u>Kevin Love</u> <small>PER 0.70</small></mark>' in both
    assert '<u>Ohio</u> <span class="missed">LOC in gold</span> <small>✗ ORG 0.30</small></mark>' in both
    assert "a man with a ball" in both
    assert "<dt>ocr</dt>" not in both
    assert f'src="{PIXEL}"' in card


def test_cards_carry_what_they_are_sorted_by(tmp_path: Path) -> None:
    cards = {card["data-id"]: card for card in page(tmp_path, report()).cards}
    assert list(cards) == ["image helps", "right", "nothing"]
    helped = cards["image helps"]
    assert helped["data-errors"] == "3"  # T: a boundary and a missed one; I+T: a type
    assert helped["data-differ"] == "1"
    assert float(helped["data-score"] or "") == 0.3
    assert float(helped["data-disagreement"] or "") == pytest.approx(0.4 + 0.7 + 0.3)
    assert cards["right"]["data-differ"] == cards["right"]["data-errors"] == "0"
    assert float(cards["right"]["data-disagreement"] or "") == pytest.approx(0.05)
    assert float(cards["nothing"]["data-score"] or "") > 1  # behind all posts with a prediction


def test_posts_over_the_limit_are_counted(tmp_path: Path) -> None:
    wrong = [post(f"wrong {i}", "a b", [Span("PER", 0, 1)], {}) for i in range(5)]
    posts = [*[post(f"fine {i}", "a b", [], {}) for i in range(4)], *wrong]
    shown = page(tmp_path, report(posts), posts, limit=3)
    assert [card["data-id"] for card in shown.cards] == ["wrong 0", "wrong 1", "wrong 2"]
    assert "3 of 9 posts" in shown.text
    assert "6 more are not on this page; 2 of them have errors" in shown.text
    assert page(tmp_path, report(posts), posts, limit=0).cards == []
    assert "9 of 9 posts, those with errors first. sort" in page(tmp_path, report(posts), posts, limit=9).text
    with pytest.raises(ValueError, match="limit is -1"):
        page(tmp_path, report(posts), posts, limit=-1)


def test_hostile_data_is_only_text(tmp_path: Path) -> None:
    kind = f"P{HOSTILE}".replace(" ", "")
    spans = {Span(kind, 0, 1): 0.5}
    bad = EvaluatedPost(
        HOSTILE,
        (HOSTILE, "x"),
        frozenset({Span(kind, 1, 2)}),
        dict.fromkeys(VIEWS, spans),
        {HOSTILE: [HOSTILE]},
        'data:image/gif;base64,AA" onerror="alert(1)',
    )
    made = report([bad], name=HOSTILE, command=HOSTILE, config={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE})
    made["data"] = {HOSTILE: {"sha256": HOSTILE, "known_as": HOSTILE}}
    made["ablation"] = {"test": {HOSTILE: made["scores"]["test"]["T"]}}
    made["created"] = HOSTILE
    del made["signatures"]
    tame = [tag for tag, _ in page(tmp_path, report(POSTS)).tags]
    shown = page(tmp_path, made, [bad])
    assert {tag for tag, _ in shown.tags} <= {*tame}
    assert [tag for tag, _ in shown.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert shown.cards[0]["data-id"] == HOSTILE
    assert "img" not in [tag for tag, _ in shown.tags]
    assert HOSTILE in shown.text


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    shown = page(tmp_path, report())
    assert not re.search(r"https?:|//[a-z]|@import|url\(", shown.source)
    policy = next(a["content"] for tag, a in shown.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag, attributes in shown.tags:
        assert tag not in ("link", "iframe", "object", "base", "a")
        assert (attributes.get("src") or "data:").startswith("data:")
        assert "href" not in attributes
    outside = [EvaluatedPost("x", ("a",), frozenset(), {"T": {}}, {}, "https://example.org/x.png")]
    assert "example.org" not in page(tmp_path, report(), outside).source


def test_emoji_and_surrogates(tmp_path: Path) -> None:
    odd = post("odd \udc80", "😂 👍🏽 \ud83d\ude00 \ud83d مرحبا \x00", [], {})
    shown = page(tmp_path, report(), [odd])
    assert "😂 👍🏽 😀 \ufffd مرحبا \ufffd" in shown.text
    assert shown.cards[0]["data-id"] == "odd \ufffd"


def test_overlapping_predictions_are_all_shown(tmp_path: Path) -> None:
    crossing = {Span("PER", 0, 2): 0.6, Span("LOC", 1, 3): 0.5}
    shown = page(tmp_path, report(), [post("crossing", "a b c", [], {"T": crossing})])
    assert shown.text.count("a b ✗ PER 0.60 c b c ✗ LOC 0.50") == 2


def test_view_without_image_alone(tmp_path: Path) -> None:
    alone = EvaluatedPost("x", ("a",), frozenset(), {"T": {Span("PER", 0, 1): 0.5}}, {})
    shown = page(tmp_path, report(), [alone])
    assert shown.source.count("<h4>") == 1
    assert shown.cards[0]["data-differ"] == "0"


def test_split_without_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no scores on 'valid'"):
        page(tmp_path, report(), split="valid")


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("ys", [[3.0], [2.0, 2.0, 2.0], [1e-9, 1e9], [0.1, 0.11]])
def test_chart_of_any_values_stays_within_its_frame(ys: list[float], log: bool) -> None:
    figure = line_chart("t", [Series("s", list(enumerate(ys)), "red")], "x", "y", log=log)
    numbers = [
        float(n) for line in re.findall(r'<path d="M([^"]*)"', figure) for n in re.split("[ L]", line) if "H" not in n
    ]
    places = numbers + [float(n) for n in re.findall(r'c[xy]="([^"]*)"', figure)]
    assert places
    assert all(0 <= place <= 360 for place in places)
    assert re.search(r'text-anchor="end">[^<]+<', figure)  # a tick


def test_a_band_lies_within_the_frame_and_around_its_line() -> None:
    line = Series("s", [(0, 0.5), (1, 0.6)], "red", band=[(0, 0.2, 0.8), (1, 0.5, 0.9)])
    figure = line_chart("t", [line], "x", "y")
    [band] = re.findall(r'<path d="M([^"]*)Z" fill="red" opacity="0.15"/>', figure)
    corners = [tuple(map(float, corner.split())) for corner in band.split("L")]
    [drawn] = re.findall(r'<path d="M([^"]*)" fill="none"', figure)
    points = [tuple(map(float, point.split())) for point in drawn.split("L")]
    assert len(corners) == 4 and all(0 <= place <= 360 for corner in corners for place in corner)
    for (x, y), high, low in zip(points, corners[:2], reversed(corners[2:]), strict=True):
        assert x == high[0] == low[0] and high[1] < y < low[1]


def test_chart_of_nothing_is_nothing() -> None:
    assert line_chart("t", [], "x", "y") == line_chart("t", [Series("s", [], "red")], "x", "y") == ""
