"""`LinearChainCRF` against enumeration of all tag sequences, a plain float64 recursion and the package pytorch-crf."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch

from modeling_ita import crf as crf_module
from modeling_ita.crf import LinearChainCRF
from modeling_ita.tag_scheme import TagScheme

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
SCHEMES = [(["PER"], "bio"), (["PER"], "bioes"), (["PER", "LOC"], "bio")]


def make_crf(
    scheme: TagScheme,
    constraints: str = "none",
    dtype: torch.dtype = torch.float64,
    spread: float = 1.0,
    seed: int = 0,
) -> LinearChainCRF:
    crf = LinearChainCRF(len(scheme), scheme, constraints).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return crf


def make_emissions(
    lengths: list[int], words: int, tags: int, dtype: torch.dtype = torch.float64, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(lengths) + words)
    emissions = torch.randn(len(lengths), words, tags, generator=generator).to(dtype) * spread
    return emissions, torch.arange(words) < torch.tensor(lengths)[:, None]


def well_formed(scheme: TagScheme, path: tuple[int, ...]) -> bool:
    return not path or all(scheme.allows(i, j) for i, j in zip((None, *path), (*path, None), strict=True))


class Enumeration:
    """All tag sequences of one post, with their scores summed one by one in float64, best first."""

    def __init__(self, crf: LinearChainCRF, emissions: torch.Tensor, *, constrained: bool) -> None:
        paths = itertools.product(range(crf.num_tags), repeat=len(emissions))
        kept = [path for path in paths if not constrained or well_formed(crf.scheme, path)]
        scores = torch.stack([path_score(crf, emissions, path) for path in kept])
        order = scores.argsort(descending=True)
        self.scores = scores[order]
        self.paths = [kept[i] for i in order.tolist()]
        self.log_partition = self.scores.logsumexp(0)

    def log_probability(self, *holds: bool) -> torch.Tensor:
        return self.scores[torch.tensor(holds)].logsumexp(0) - self.log_partition


def path_score(crf: LinearChainCRF, emissions: torch.Tensor, path: tuple[int, ...]) -> torch.Tensor:
    if not path:
        return torch.zeros((), dtype=torch.float64)
    tags = list(path)
    transitions, start, end = (parameter.detach().double() for parameter in crf.parameters())
    steps = transitions[tags[:-1], tags[1:]].sum()
    return start[tags[0]] + emissions.double()[range(len(tags)), tags].sum() + steps + end[tags[-1]]


def log_space_reference(
    crf: LinearChainCRF, emissions: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """log Z and log marginals of one post by the textbook recursion in float64."""
    transitions, start, end = (parameter.detach().double() for parameter in crf.parameters())
    emissions = emissions[:length].double()
    alphas, betas = [start + emissions[0]], [end]
    for word in emissions[1:]:
        alphas.append((alphas[-1][:, None] + transitions).logsumexp(0) + word)
    for word in emissions[1:].flip(0):
        betas.append((transitions + word + betas[-1]).logsumexp(1))
    log_partition = (alphas[-1] + end).logsumexp(0)
    joint = torch.stack(alphas) + torch.stack(betas[::-1])
    return log_partition, joint - joint.logsumexp(1, keepdim=True)


def assert_close(actual: torch.Tensor, expected: torch.Tensor | float, dtype: torch.dtype) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


# ---------------------------------------------------------------------------------------------- against enumeration


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constraints", ["none", "decode", "always"])
@pytest.mark.parametrize(("types", "name"), SCHEMES)
def test_every_quantity_equals_enumeration(types, name, constraints, dtype):
    scheme = TagScheme.from_types(types, name)
    crf = make_crf(scheme, constraints, dtype)
    lengths = [4, 3, 1, 0] if len(scheme) == 5 else [5, 3, 1, 0]
    emissions, mask = make_emissions(lengths, max(lengths), len(scheme), dtype, spread=2.0)
    tags = torch.tensor([scheme.encode([], max(lengths))] * len(lengths))

    partitions = crf.log_partition(emissions, mask)
    likelihoods = crf.log_likelihood(emissions, tags, mask)
    marginals = crf.log_marginals(emissions, mask)
    best, best_scores = crf.decode(emissions, mask)
    top, top_scores = crf.nbest(emissions, mask, 7)
    for quantity in (partitions, likelihoods, marginals, best_scores, top_scores):
        assert quantity.dtype == dtype

    for row, length in enumerate(lengths):
        words = emissions[row, :length]
        paths = Enumeration(crf, words, constrained=constraints == "always")
        assert_close(partitions[row], paths.log_partition, dtype)
        outside = tuple(tags[row, :length].tolist())
        assert_close(likelihoods[row], path_score(crf, words, outside) - paths.log_partition, dtype)
        for word, tag in itertools.product(range(length), range(len(scheme))):
            holds = [path[word] == tag for path in paths.paths]
            if any(holds):
                assert_close(marginals[row, word, tag], paths.log_probability(*holds), dtype)
            else:
                assert marginals[row, word, tag] < -1e29
        uniform = torch.full((max(lengths) - length, len(scheme)), -math.log(len(scheme)), dtype=torch.float64)
        assert_close(marginals[row, length:], uniform, dtype)

        decodable = Enumeration(crf, words, constrained=constraints != "none")
        padding = [-1] * (max(lengths) - length)
        assert best[row].tolist() == [*decodable.paths[0], *padding]
        assert_close(best_scores[row], decodable.scores[0], dtype)
        for rank in range(7):
            if rank < len(decodable.paths):
                assert top[row, rank].tolist() == [*decodable.paths[rank], *padding]
                assert_close(top_scores[row, rank], decodable.scores[rank], dtype)
            else:
                assert top[row, rank].tolist() == [-1] * max(lengths)
                assert top_scores[row, rank] == -math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constraints", ["none", "decode", "always"])
@pytest.mark.parametrize(("types", "name"), SCHEMES)
def test_span_probability_equals_enumeration(types, name, constraints, dtype):
    scheme = TagScheme.from_types(types, name)
    crf = make_crf(scheme, constraints, dtype)
    lengths = [4, 2, 1, 0]
    emissions, mask = make_emissions(lengths, 4, len(scheme), dtype)
    spans = [
        (row, start, end, kind)
        for row, length in enumerate(lengths)
        for start, end in itertools.combinations(range(length + 1), 2)
        for kind in range(len(types))
    ]
    actual = crf.span_log_probability(emissions, mask, torch.tensor(spans))
    assert actual.dtype == dtype
    expected = []
    for row, group in itertools.groupby(spans, key=lambda span: span[0]):
        paths = Enumeration(crf, emissions[row, : lengths[row]], constrained=constraints == "always")
        readings = [set(scheme.spans(path)) for path in paths.paths]
        for _, start, end, kind in group:
            holds = [(scheme.types[kind], start, end) in reading for reading in readings]
            expected.append(paths.log_probability(*holds))
    assert_close(actual, torch.stack(expected), dtype)


def test_expected_number_of_entities_agrees_with_marginals_on_a_long_post():
    # every entity has one first word: the spans' probabilities sum to the expected number of words that begin one
    scheme = TagScheme.from_types(["PER", "LOC"], "bio")
    crf = make_crf(scheme, constraints="always")
    emissions, mask = make_emissions([20], 20, len(scheme), spread=3.0)
    spans = [(0, i, j, k) for i, j in itertools.combinations(range(21), 2) for k in range(2)]
    total = crf.span_log_probability(emissions, mask, torch.tensor(spans)).exp().sum()
    begins = [i for i, label in enumerate(scheme.labels) if label.startswith("B-")]
    assert_close(total, crf.log_marginals(emissions, mask)[..., begins].exp().sum().item(), torch.float64)


def test_single_tag_and_empty_batches():
    crf = LinearChainCRF(1).double()
    emissions, mask = make_emissions([3, 0], 3, 1)
    only = path_score(crf, emissions[0], (0, 0, 0)).item()
    assert_close(crf.log_partition(emissions, mask), torch.tensor([only, 0.0], dtype=torch.float64), torch.float64)
    assert crf.decode(emissions, mask)[0].tolist() == [[0, 0, 0], [-1, -1, -1]]

    crf = make_crf(TagScheme.from_types(["PER"]))
    for rows, words in [(0, 3), (2, 0), (0, 0)]:
        emissions, mask = torch.randn(rows, words, 3, requires_grad=True), torch.ones(rows, words, dtype=torch.bool)
        assert crf.log_partition(emissions, mask).tolist() == [0.0] * rows
        assert crf.log_likelihood(emissions, torch.zeros(rows, words, dtype=torch.long), mask).shape == (rows,)
        assert crf.log_marginals(emissions, mask).shape == (rows, words, 3)
        assert [x.shape for x in crf.decode(emissions, mask)] == [(rows, words), (rows,)]
        assert [x.shape for x in crf.nbest(emissions, mask, 2)] == [(rows, 2, words), (rows, 2)]
        assert crf.span_log_probability(emissions, mask, torch.zeros(0, 4, dtype=torch.long)).shape == (0,)
        (crf.log_partition(emissions, mask).sum() + crf.log_marginals(emissions, mask).sum()).backward()
        assert emissions.grad.shape == emissions.shape


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("too_wide_for_scaling", [False, True])
@pytest.mark.parametrize("constraints", ["none", "always"])
@pytest.mark.parametrize("method", ["log_partition", "log_likelihood", "log_marginals", "span_log_probability"])
def test_gradients(method, constraints, too_wide_for_scaling):
    scheme = TagScheme.from_types(["PER"], "bioes")
    crf = make_crf(scheme, constraints)
    if too_wide_for_scaling:
        with torch.no_grad():
            crf.transitions[0, 1] -= 3000  # O → B-PER, which spans may still begin with
    emissions, mask = make_emissions([3, 1, 0], 3, len(scheme))
    arguments = {
        "log_likelihood": (torch.tensor([[0, 4, 0]] * 3), mask),
        "span_log_probability": (mask, torch.tensor([[0, 0, 2, 0], [0, 0, 3, 0], [0, 2, 3, 0], [1, 0, 1, 0]])),
    }.get(method, (mask,))
    names = [name for name, _ in crf.named_parameters()]

    def function(emissions: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        with torch.nn.utils.stateless._reparametrize_module(crf, dict(zip(names, values, strict=True))):
            return getattr(crf, method)(emissions, *arguments).clamp_min(-1e5)  # impossible tags stand at −1e30

    inputs = [x.detach().requires_grad_() for x in (emissions, *crf.parameters())]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_likelihood_gradient_is_gold_less_expected_counts():
    crf = make_crf(TagScheme.from_types(["PER", "LOC"]))
    emissions, mask = make_emissions([7, 3, 0], 7, 5)
    emissions.requires_grad_()
    tags = torch.randint(0, 5, (3, 7), generator=torch.Generator().manual_seed(0)).masked_fill(~mask, -100)
    crf.log_likelihood(emissions, tags, mask).sum().backward()
    gold = torch.nn.functional.one_hot(tags.clamp(min=0), 5) * mask[..., None]
    expected = crf.log_marginals(emissions, mask).exp() * mask[..., None]
    assert_close(emissions.grad, (gold - expected).detach(), torch.float64)
    assert not emissions.grad[~mask].any()
    # ten words, two of which have none before them: the eight transitions cancel in the sum of counts
    assert_close(crf.transitions.grad.sum(), 0.0, torch.float64)
    assert_close(crf.start_transitions.grad, (gold - expected)[:, 0].sum(0).detach(), torch.float64)


# --------------------------------------------------------------------------------------------- against pytorch-crf


@pytest.mark.parametrize("lengths", [[40, 40, 40], [40, 17, 1]])
def test_agrees_with_pytorch_crf(lengths):
    torchcrf = pytest.importorskip("torchcrf")
    torch.manual_seed(0)
    theirs, ours = torchcrf.CRF(9, batch_first=True).double(), LinearChainCRF(9).double()
    ours.load_state_dict(theirs.state_dict())
    emissions, mask = make_emissions(lengths, 40, 9)
    tags = torch.randint(0, 9, mask.shape)
    gradients = []
    for likelihood in (
        lambda e: theirs(e, tags, mask, reduction="none"),
        lambda e: ours.log_likelihood(e, tags, mask),
    ):
        leaf = emissions.clone().requires_grad_()
        value = likelihood(leaf)
        (value * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        gradients.append([value, leaf.grad])
    gradients[0] += [
        theirs.get_parameter(name).grad for name in ("transitions", "start_transitions", "end_transitions")
    ]
    gradients[1] += [parameter.grad for parameter in ours.parameters()]
    for expected, actual in zip(*gradients, strict=True):
        assert_close(actual, expected.detach(), torch.float64)
    tags, _ = ours.decode(emissions, mask)
    assert [row[row >= 0].tolist() for row in tags] == theirs.decode(emissions, mask)


# ------------------------------------------------------------------------------------------------- range and dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transition_spread", [1.0, 50.0, 1e4])
@pytest.mark.parametrize("emission_spread", [0.0, 1.0, 1e4])
def test_any_magnitude_of_scores(emission_spread, transition_spread, dtype):
    # a long post, so that messages are normalised many times; transitions of 1e4 leave what scaling can do
    crf = make_crf(TagScheme.from_types(["PER", "LOC"], "bioes"), dtype=dtype, spread=transition_spread)
    lengths = [60, 25, 1]
    emissions, mask = make_emissions(lengths, 60, 9, dtype, spread=emission_spread)
    emissions.requires_grad_()
    partitions, marginals = crf.log_partition(emissions, mask), crf.log_marginals(emissions, mask)
    _, best = crf.decode(emissions, mask)
    for row, length in enumerate(lengths):
        log_partition, log_marginals = log_space_reference(crf, emissions[row].detach(), length)
        assert_close(partitions[row], log_partition, dtype)
        assert_close(marginals[row, :length], log_marginals, dtype)
        assert best[row] <= partitions[row] * (1 + math.copysign(1e-6, partitions[row].item()))
    (partitions.sum() + marginals[..., 0].sum()).backward()
    for tensor in (emissions, *crf.parameters()):
        assert tensor.grad.isfinite().all()


def test_small_marginals_keep_their_logarithm_in_float32():
    crf = LinearChainCRF(3)
    emissions, mask = torch.zeros(1, 5, 3), torch.ones(1, 5, dtype=torch.bool)
    emissions[0, :, 1], emissions[0, 2, 2] = -200.0, -2e4
    marginals = crf.log_marginals(emissions, mask)
    _, expected = log_space_reference(crf, emissions[0], 5)
    assert_close(marginals[0], expected, torch.float32)
    assert -203 < marginals[0, 2, 1] < -197
    assert -20010 < marginals[0, 2, 2] < -19990


@pytest.mark.parametrize("spread", [1.0, 1e4])
def test_extreme_scores_decode_to_the_best_path(spread):
    crf = make_crf(TagScheme.from_types(["PER"]), dtype=torch.float32, spread=spread)
    emissions, mask = make_emissions([6, 4], 6, 3, torch.float32, spread=1e4)
    best, scores = crf.decode(emissions, mask)
    for row, length in enumerate([6, 4]):
        paths = Enumeration(crf, emissions[row, :length], constrained=False)
        assert best[row, :length].tolist() == list(paths.paths[0])
        assert_close(scores[row], paths.scores[0], torch.float32)


@pytest.mark.parametrize("constraints", ["none", "always"])
@pytest.mark.parametrize("spread", [0.3, 1.0, 8.0, 30.0])
def test_devices_without_float64(monkeypatch, spread, constraints):
    # messages are normalised at ever shorter intervals, and at last (with constraints, early) not scaled at all
    scheme = TagScheme.from_types(["PER"], "bioes")
    crf = make_crf(scheme, constraints, torch.float32, spread)
    emissions, mask = make_emissions([30, 11, 0], 30, len(scheme), torch.float32)
    tags = torch.zeros(mask.shape, dtype=torch.long)

    def everything() -> list[torch.Tensor]:
        leaf = emissions.clone().requires_grad_()
        values = [
            crf.log_likelihood(leaf, tags, mask),
            crf.log_marginals(leaf, mask).clamp_min(-1e20),
            crf.span_log_probability(leaf, mask, torch.tensor([[0, 3, 5, 0], [1, 10, 11, 0]])),
        ]
        sum(value.sum() for value in values).backward()
        return [*values, leaf.grad, *crf.decode(leaf, mask), *crf.nbest(leaf, mask, 3)]

    expected = everything()
    monkeypatch.setattr(crf_module, "_scan_dtypes", lambda words: (torch.float32,))
    with torch.autocast("cpu", torch.bfloat16):
        actual = everything()
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted(half):
    scheme = TagScheme.from_types(["PER"])
    crf = make_crf(scheme, dtype=torch.float32)
    emissions, mask = make_emissions([9, 4, 0], 9, 3, half, spread=20.0)
    tags = torch.zeros(mask.shape, dtype=torch.long)
    spans = torch.tensor([[0, 1, 3, 0]])

    def everything(crf: LinearChainCRF, emissions: torch.Tensor) -> list[torch.Tensor]:
        leaf = emissions.clone().requires_grad_()
        values = [
            crf.log_likelihood(leaf, tags, mask),
            crf.log_marginals(leaf, mask),
            crf.span_log_probability(leaf, mask, spans),
            *crf.decode(leaf, mask),
            *crf.nbest(leaf, mask, 2),
        ]
        crf.zero_grad()
        (values[0].sum() + values[1].sum()).backward()
        return [*values, leaf.grad.float(), *(parameter.grad.float() for parameter in crf.parameters())]

    expected = everything(crf, emissions.float())
    with torch.autocast("cpu", half):
        actual = everything(crf, emissions)
    assert [value.dtype for value in actual[:3]] == [torch.float32] * 3
    for one, other in zip(actual, expected, strict=True):
        # the emissions' gradient alone is rounded to half
        torch.testing.assert_close(
            one, other, rtol=2e-2 if one is actual[7] else 0, atol=1e-2 if one is actual[7] else 0
        )

    # parameters in half: the same as their values in float32
    rounded = copy.deepcopy(crf).to(half)
    for one, other in zip(everything(rounded, emissions), everything(rounded.float(), emissions), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_padding_is_never_read():
    scheme = TagScheme.from_types(["PER"])
    crf = make_crf(scheme, dtype=torch.float32)
    emissions, mask = make_emissions([4, 2, 0], 4, 3, torch.float32)
    tags = torch.ones(mask.shape, dtype=torch.long)
    spans = torch.tensor([[0, 0, 4, 0], [1, 1, 2, 0]])

    def everything(emissions: torch.Tensor, tags: torch.Tensor) -> list[torch.Tensor]:
        leaf = emissions.clone().requires_grad_()
        values = [
            crf.log_partition(leaf, mask),
            crf.log_likelihood(leaf, tags, mask),
            crf.log_marginals(leaf, mask),
            crf.span_log_probability(leaf, mask, spans),
        ]
        crf.zero_grad()
        sum(value.sum() for value in values).backward()
        assert not leaf.grad[~mask].any()
        return [*values, *crf.decode(leaf, mask), *crf.nbest(leaf, mask, 3), leaf.grad, crf.transitions.grad.clone()]

    expected = everything(emissions, tags)
    for content in (math.nan, math.inf, -math.inf, 1e30):
        actual = everything(emissions.masked_fill(~mask[..., None], content), tags.masked_fill(~mask, -100))
        for one, other in zip(actual, expected, strict=True):
            assert torch.equal(one, other)


def test_a_row_does_not_depend_on_its_batch():
    scheme = TagScheme.from_types(["PER", "LOC"])
    crf = make_crf(scheme, "decode")
    emissions, mask = make_emissions([11, 6, 1, 0], 11, 5)
    together = [crf.log_partition(emissions, mask), crf.log_marginals(emissions, mask), *crf.decode(emissions, mask)]
    for row, length in enumerate([11, 6, 1, 0]):
        cut = emissions[row : row + 1, :length], mask[row : row + 1, :length]
        alone = [crf.log_partition(*cut), crf.log_marginals(*cut), *crf.decode(*cut)]
        assert_close(together[0][row], alone[0][0].item(), torch.float64)
        assert_close(together[1][row, :length], alone[1][0].detach(), torch.float64)
        assert together[2][row, :length].tolist() == alone[2][0].tolist()
        assert_close(together[3][row], alone[3][0].item(), torch.float64)


# ------------------------------------------------------------------------------------------------------- constraints


@pytest.mark.parametrize("name", ["bio", "bioes"])
@pytest.mark.parametrize("constraints", ["decode", "always"])
def test_constrained_decoding_gives_well_formed_sequences(name, constraints):
    scheme = TagScheme.from_types(["PER", "LOC"], name)
    crf = make_crf(scheme, constraints, torch.float32)
    lengths = [15, 14, 8, 2, 1]
    emissions, mask = make_emissions(lengths, 15, len(scheme), torch.float32, spread=30.0)
    best, _ = crf.decode(emissions, mask)
    top, _ = crf.nbest(emissions, mask, 5)
    for row, length in enumerate(lengths):
        candidates = {tuple(path[:length].tolist()) for path in [best[row], *top[row]] if path[0] >= 0}
        assert all(well_formed(scheme, path) for path in candidates)
        if length > 1:
            assert len(candidates) == 5  # all different, the best one among them
    free = LinearChainCRF(len(scheme), scheme)
    free.load_state_dict(crf.state_dict())
    assert not all(
        well_formed(scheme, tuple(path[:length].tolist()))
        for path, length in zip(free.decode(emissions, mask)[0], lengths, strict=True)
    )


def test_always_rules_out_a_gold_sequence_that_breaks_the_scheme():
    scheme = TagScheme.from_types(["PER"])
    crf = make_crf(scheme, "always")
    emissions, mask = make_emissions([3, 3], 3, 3)
    tags = torch.tensor([[0, 2, 0], [1, 2, 0]])  # O I-PER O, B-PER I-PER O
    likelihood = crf.log_likelihood(emissions, tags, mask)
    assert likelihood[0] == -math.inf
    assert likelihood[1].isfinite()


def test_alignment_of_two_constrained_views_is_finite():
    # the divergence of Wang et al.'s cross-view alignment over tags that are impossible in both views
    scheme = TagScheme.from_types(["PER"], "bioes")
    crf = make_crf(scheme, "always", torch.float32)
    emissions, mask = make_emissions([5, 2], 5, len(scheme), torch.float32)
    teacher = crf.log_marginals(emissions, mask).detach()
    leaf = (emissions * 2).requires_grad_()
    student = crf.log_marginals(leaf, mask)
    for temperature in (1.0, 4.0):
        p, q = (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
        divergence = (p.exp() * (p - q)).sum()
        leaf.grad = None
        divergence.backward(retain_graph=True)
        assert divergence > 0
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()


# ------------------------------------------------------------------------------------------------ module and errors


def test_it_is_an_ordinary_module():
    scheme = TagScheme.from_types(["PER"])
    crf = LinearChainCRF(3, scheme, "decode")
    assert sorted(crf.state_dict()) == ["end_transitions", "start_transitions", "transitions"]
    assert all(0 < parameter.abs().max() <= 0.1 for parameter in crf.parameters())
    emissions, mask = make_emissions([4, 2], 4, 3, torch.float32)
    with torch.device("meta"):
        late = LinearChainCRF(3, scheme, "decode")
    late = late.to_empty(device="cpu")
    late.load_state_dict(crf.state_dict())
    for other in (copy.deepcopy(crf), pickle.loads(pickle.dumps(crf)), late):
        assert torch.equal(other.decode(emissions, mask)[1], crf.decode(emissions, mask)[1])
        assert torch.equal(other.log_marginals(emissions, mask), crf.log_marginals(emissions, mask))


def test_a_caller_can_be_compiled():
    crf = LinearChainCRF(3)
    emissions, mask = make_emissions([4, 2], 4, 3, torch.float32)
    emissions.requires_grad_()

    def loss(emissions: torch.Tensor) -> torch.Tensor:
        return crf.log_partition(emissions * 2, mask).sum() * 3

    (expected,) = torch.autograd.grad(loss(emissions), emissions)
    (actual,) = torch.autograd.grad(torch.compile(loss, backend="eager")(emissions), emissions)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, None, "sometimes"), "'sometimes'.*'none', 'decode' or 'always'"),
        ((3, None, "decode"), "needs a tag scheme"),
        ((4, TagScheme.from_types(["PER"]), "none"), "num_tags=4.*3 tags"),
    ],
)
def test_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearChainCRF(*arguments)


def test_shapes_and_types_are_checked():
    crf = make_crf(TagScheme.from_types(["PER"]))
    emissions, mask = make_emissions([2, 1], 2, 3)
    tags = torch.zeros(2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"emissions are torch.float64 \(2, 2, 2\) \(expected floating \(B, N, 3\)\)"):
        crf.log_partition(emissions[..., :2], mask)
    with pytest.raises(ValueError, match=r"emissions are torch.int64"):
        crf.decode(emissions.long(), mask)
    with pytest.raises(ValueError, match=r"mask is torch.int64 \(2, 2\) \(expected torch.bool \(2, 2\)\)"):
        crf.log_marginals(emissions, mask.long())
    with pytest.raises(ValueError, match=r"mask is torch.bool \(1, 2\)"):
        crf.nbest(emissions, mask[:1], 2)
    with pytest.raises(ValueError, match=r"tags are torch.int64 \(2, 1\) \(expected torch.int64 \(2, 2\)\)"):
        crf.log_likelihood(emissions, tags[:, :1], mask)
    with pytest.raises(ValueError, match="n=0"):
        crf.nbest(emissions, mask, 0)


@pytest.mark.parametrize("tag", [-100, -1, 3])
def test_a_tag_that_is_none_is_named(tag):
    crf = make_crf(TagScheme.from_types(["PER"]))
    emissions, mask = make_emissions([2, 1], 2, 3)
    with pytest.raises(ValueError, match=f"post 0, word 1: tag id {tag} is not one of 0 … 2"):
        crf.log_likelihood(emissions, torch.tensor([[0, tag], [0, tag]]), mask)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ([0, 1, 1, 0], r"\[post 0, words 1 to 1, type 0\].*empty"),
        ([1, 0, 2, 0], r"\[post 1, words 0 to 2, type 0\].*the post's 1 words"),
        ([0, -1, 1, 0], "outside the post's 2 words"),
        ([2, 0, 1, 0], "outside the batch of 2"),
        ([0, 0, 1, 1], r"none of the 1 types \('PER',\)"),
        ([0, 0, 1, -1], "none of the 1 types"),
    ],
)
def test_a_bad_span_is_named(span, message):
    crf = make_crf(TagScheme.from_types(["PER"]))
    emissions, mask = make_emissions([2, 1], 2, 3)
    with pytest.raises(ValueError, match=message):
        crf.span_log_probability(emissions, mask, torch.tensor([[0, 0, 1, 0], span]))
    with pytest.raises(ValueError, match=r"spans are torch.int64 \(4,\)"):
        crf.span_log_probability(emissions, mask, torch.tensor(span))
    with pytest.raises(ValueError, match="needs a tag scheme"):
        LinearChainCRF(3).span_log_probability(emissions, mask, torch.tensor([span]))
