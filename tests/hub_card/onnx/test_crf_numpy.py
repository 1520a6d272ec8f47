"""The CRF in numpy against `LinearChainCRF`, and against the enumeration of all tag sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hub_card.onnx.crf_numpy import NumpyCrf
from modeling_ita import LinearChainCRF, TagScheme

SCORES = ("transitions", "start_transitions", "end_transitions")


def make_pair(scheme: TagScheme, constraints: str = "none", spread: float = 1.0) -> tuple[LinearChainCRF, NumpyCrf]:
    """The same random scores in both."""
    generator = torch.Generator().manual_seed(0)
    crf = LinearChainCRF(len(scheme), scheme, constraints)
    with torch.no_grad():
        for scores in crf.parameters():
            scores.copy_(torch.randn(scores.shape, generator=generator) * spread)
    return crf, NumpyCrf(*(getattr(crf, name).detach().numpy() for name in SCORES), scheme, constraints)


def make_batch(lengths: list[int], words: int, tags: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(len(lengths) + words)
    emissions = draw.normal(size=(len(lengths), words, tags)).astype(np.float32) * np.float32(spread)
    return emissions, np.arange(words) < np.array(lengths)[:, None]


def all_spans(lengths: list[int], scheme: TagScheme) -> np.ndarray:
    return np.array(
        [
            (post, start, end, kind)
            for post, length in enumerate(lengths)
            for start in range(length)
            for end in range(start + 1, length + 1)
            for kind in range(len(scheme.types))
        ],
        np.int64,
    )


@pytest.mark.parametrize("constraints", ["none", "decode", "always"])
@pytest.mark.parametrize(("types", "name"), [(["PER", "LOC"], "bio"), (["PER"], "bioes")])
def test_enumeration(types: list[str], name: str, constraints: str) -> None:
    scheme = TagScheme.from_types(types, name)
    crf, numpy_crf = make_pair(scheme, constraints)
    lengths = [4, 1, 3]
    emissions, mask = make_batch(lengths, 4, len(scheme))
    tags, best = numpy_crf.decode(emissions, mask)
    marginals = np.exp(numpy_crf.log_marginals(emissions, mask))
    posteriors = numpy_crf.best_log_posterior(emissions, mask)
    spans = all_spans(lengths, scheme)
    probabilities = np.exp(numpy_crf.span_log_probability(emissions, mask, spans, temperature=1.5))
    transitions, start, end = (getattr(crf, score).detach().numpy().astype(float) for score in SCORES)
    for post, length in enumerate(lengths):
        words = emissions[post, :length].astype(float)
        paths = np.array(list(itertools.product(range(len(scheme)), repeat=length)))
        steps = np.arange(length)
        scores = start[paths[:, 0]] + words[steps, paths].sum(1) + end[paths[:, -1]]
        scores += transitions[paths[:, :-1], paths[:, 1:]].sum(1)
        allowed = np.array(
            [all(itertools.starmap(scheme.allows, itertools.pairwise((None, *p, None)))) for p in paths]
        )
        decodable = scores if constraints == "none" else np.where(allowed, scores, -np.inf)
        assert tags[post].tolist() == [*paths[decodable.argmax()], *[-1] * (4 - length)]
        assert best[post] == pytest.approx(decodable.max(), abs=1e-5)

        weights = np.exp(np.where(allowed | (constraints != "always"), scores, -np.inf))
        expected = np.exp(decodable.max()) / weights.sum()
        assert np.exp(posteriors[post]) == pytest.approx(expected, abs=1e-6)
        for tag in range(len(scheme)):
            expected = ((paths == tag) * weights[:, None]).sum(0) / weights.sum()
            assert marginals[post, :length, tag] == pytest.approx(expected, abs=1e-6)
        weights **= 1 / 1.5
        readings = [set(scheme.spans(path.tolist())) for path in paths]
        for (of, first, last, kind), probability in zip(spans.tolist(), probabilities, strict=True):
            if of == post:
                holds = [(scheme.types[kind], first, last) in reading for reading in readings]
                assert probability == pytest.approx((weights * holds).sum() / weights.sum(), abs=1e-6)


@pytest.mark.parametrize("spread", [1.0, 30.0, 3000.0])
@pytest.mark.parametrize("constraints", ["none", "decode", "always"])
def test_original(constraints: str, spread: float) -> None:
    scheme = TagScheme.from_types(["PER", "LOC", "ORG"], "bioes" if constraints == "decode" else "bio")
    crf, numpy_crf = make_pair(scheme, constraints, spread=min(spread, 30.0))
    lengths = [23, 0, 1, 2, 14, 7]
    emissions, mask = make_batch(lengths, 23, len(scheme), spread)
    tensors = torch.from_numpy(emissions), torch.from_numpy(mask)
    tags, best = numpy_crf.decode(emissions, mask)
    expected_tags, expected_best = crf.decode(*tensors)
    assert tags.tolist() == expected_tags.tolist()
    assert best == pytest.approx(expected_best.numpy(), rel=1e-5)
    marginals, expected = numpy_crf.log_marginals(emissions, mask), crf.log_marginals(*tensors).detach().numpy()
    assert marginals.dtype == np.float32 and marginals == pytest.approx(expected, rel=1e-5, abs=1e-5)
    expected = crf.log_likelihood(tensors[0], expected_tags, tensors[1]).detach().numpy()
    assert numpy_crf.best_log_posterior(emissions, mask) == pytest.approx(expected, rel=1e-4, abs=2e-3)  # float32
    spans = all_spans(lengths, scheme)[::7]
    for temperature in (1.0, 2.5):
        log_probs = numpy_crf.span_log_probability(emissions, mask, spans, temperature)
        expected = crf.span_log_probability(*tensors, torch.from_numpy(spans), temperature).detach().numpy()
        assert log_probs == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_ties_are_broken_alike() -> None:
    scheme = TagScheme.from_types(["PER", "LOC"])
    crf, numpy_crf = make_pair(scheme)
    draw = np.random.default_rng(0)
    crf.load_state_dict({name: torch.from_numpy(draw.integers(-1, 2, getattr(crf, name).shape)) for name in SCORES})
    numpy_crf = NumpyCrf(*(getattr(crf, name).detach().numpy() for name in SCORES), scheme)
    emissions = draw.integers(-1, 2, (300, 9, len(scheme))).astype(np.float32)
    mask = np.arange(9) < draw.integers(0, 10, (300, 1))
    expected, _ = crf.decode(torch.from_numpy(emissions), torch.from_numpy(mask))
    assert numpy_crf.decode(emissions, mask)[0].tolist() == expected.tolist()


def test_a_post_has_the_same_answer_in_any_batch() -> None:
    scheme = TagScheme.from_types(["PER", "LOC"])
    _, numpy_crf = make_pair(scheme, "always")
    lengths = [5, 9, 1, 0]
    emissions, mask = make_batch(lengths, 9, len(scheme))
    emissions[~mask] = np.nan  # never read
    tags, _ = numpy_crf.decode(emissions, mask)
    marginals = numpy_crf.log_marginals(emissions, mask)
    for post, length in enumerate(lengths):
        alone = emissions[post : post + 1, :length], mask[post : post + 1, :length]
        assert numpy_crf.decode(*alone)[0][0].tolist() == tags[post, :length].tolist()
        assert numpy_crf.log_marginals(*alone)[0] == pytest.approx(marginals[post, :length], rel=1e-6, abs=1e-6)
    assert np.exp(marginals[~mask]) == pytest.approx(1 / len(scheme))
    assert (tags[~mask] == -1).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0)])
def test_nothing_to_label(shape: tuple[int, int]) -> None:
    scheme = TagScheme.from_types(["PER"])
    _, numpy_crf = make_pair(scheme)
    emissions, mask = np.zeros((*shape, 3), np.float32), np.zeros(shape, bool)
    tags, best = numpy_crf.decode(emissions, mask)
    assert tags.shape == shape and best.tolist() == [0.0] * shape[0]
    assert numpy_crf.log_marginals(emissions, mask).shape == (*shape, 3)
    assert numpy_crf.best_log_posterior(emissions, mask).tolist() == [0.0] * shape[0]
    assert numpy_crf.span_log_probability(emissions, mask, np.zeros((0, 4), np.int64)).shape == (0,)


def test_bad_input() -> None:
    scheme = TagScheme.from_types(["PER"])
    _, crf = make_pair(scheme)
    emissions, mask = make_batch([2, 1], 2, 3)
    with pytest.raises(ValueError, match=r"emissions are float32 \(2, 2, 2\) .*N, 3"):
        crf.decode(emissions[..., :2], mask)
    with pytest.raises(ValueError, match=r"mask is int64 \(2, 2\) \(expected bool"):
        crf.log_marginals(emissions, mask.astype(np.int64))
    for span in ([2, 0, 1, 0], [0, 1, 1, 0], [1, 0, 2, 0], [0, 0, 1, 1], [-1, 0, 1, 0]):
        with pytest.raises(ValueError, match=f"post {span[0]}, words {span[1]} to {span[2]}, type {span[3]}"):
            crf.span_log_probability(emissions, mask, np.array([[0, 0, 1, 0], span]))
    with pytest.raises(ValueError, match=r"spans are float64 \(1, 4\)"):
        crf.span_log_probability(emissions, mask, np.zeros((1, 4)))
    with pytest.raises(ValueError, match="temperature is 0"):
        crf.span_log_probability(emissions, mask, np.zeros((0, 4), np.int64), temperature=0)
    with pytest.raises(ValueError, match="unknown constraints 'soft'"):
        NumpyCrf(np.zeros((3, 3)), np.zeros(3), np.zeros(3), scheme, "soft")
    with pytest.raises(ValueError, match=r"end_transitions are \(2,\) \(expected \(3,\)"):
        NumpyCrf(np.zeros((3, 3)), np.zeros(3), np.zeros(2), scheme)
