"""A linear-chain conditional random field over the tags of a post: likelihood, posteriors, decoding.

The field (Lafferty, McCallum and Pereira, 2001) gives the tag sequence y of a post of L words the score

    s(y) = start(y_1) + Σ_t e_t(y_t) + Σ_t T(y_{t-1}, y_t) + end(y_L),        p(y) = exp s(y) / Z,    Z = Σ_y exp s(y).

**The border tag.** A (C + 1)-th tag stands for whatever lies outside the post: it precedes the first word, follows the
last and fills the padding. T bordered by the start scores as its last row and the end scores as its last column then
says all there is to say about transitions, and every row of a batch is a chain of the same length N from border to
border. D is C + 1 throughout.

**The scan.** A message arriving at a word is a~_t(y) = Σ_y' p_{t-1}(y') exp T(y', y), and p_t(y) = a~_t(y) exp e_t(y),
each up to a scale that is kept apart (Rabiner, 1989, section V-A). a~_t is bounded below by the range of T alone: no
emission, however extreme, makes it overflow or underflow, and log a~_t + e_t is exact even where p_t vanishes. The
recursion from the right is the same one with T transposed, so both run as one batch of matrix products.

Emissions are taken relative to each word's best, so that float32 resolves the differences between tags. Scans run in
the result's dtype where its exponent range suffices, else in float64, else in log space. On accelerators, where
float32 products may be set to a reduced precision, they start with float64. All products use `out=`, which autocast
ignores.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .tag_scheme import TagScheme

# The score of the impossible. It is finite so that neither 0 × score nor a difference of two scores is NaN.
FORBIDDEN = -1e30


class LinearChainCRF(nn.Module):
    """Scores, posteriors and best sequences of tags, in batches of posts.

    All methods take `emissions` `(B, N, C)`, the score of every tag at every word, in any floating type, and `mask`
    `(B, N)`, boolean, true on a prefix of every row: the post's words. Emissions outside the mask are never read. A
    row without words has only the empty sequence: log-partition 0, no gradients, score 0. Results are float64 for
    float64 emissions and float32 for all others. Only first derivatives are supported.

    Args:
        num_tags: the number of tags, C.
        scheme: the tag set. It is needed for constraints and for `span_log_probability`.
        constraints: where the transitions that the scheme does not allow have probability zero: nowhere (`"none"`), in
            `decode` and `nbest` (`"decode"`), or in every method (`"always"`).

    Attributes:
        transitions: the score of one tag after another, `(C, C)`, [from, to].
        start_transitions: the score of a tag at the first word, `(C,)`.
        end_transitions: the score of a tag at the last word, `(C,)`.

    Raises:
        ValueError: `constraints` is unknown or has no scheme to follow, or the scheme has another number of tags.
    """

    def __init__(
        self,
        num_tags: int,
        scheme: TagScheme | None = None,
        constraints: Literal["none", "decode", "always"] = "none",
    ) -> None:
        super().__init__()
        if constraints not in ("none", "decode", "always"):
            raise ValueError(f"unknown constraints {constraints!r} (expected 'none', 'decode' or 'always')")
        if constraints != "none" and scheme is None:
            raise ValueError(f"constraints={constraints!r} needs a tag scheme (pass scheme=TagScheme(labels))")
        if scheme is not None and len(scheme) != num_tags:
            raise ValueError(f"num_tags={num_tags} does not fit the tag scheme, which has {len(scheme)} tags")
        self.num_tags = num_tags
        self.scheme = scheme
        self.constraints = constraints
        if scheme is not None:
            # plain attributes, not buffers: they are not state, and stay on the CPU if the model is built on "meta"
            self._forbidden = ~scheme.allowed_matrix("cpu")
            self._forbidden[-1, -1] = False  # padding follows padding
            self._continues = nn.functional.pad(scheme.continuation_matrix("cpu"), (0, 1, 0, 1))
            # O, of type −1, sorts first; the others follow type by type, as many for each
            self._tags_of_type = scheme.type_ids("cpu").argsort(stable=True)[1:]
            self._tags_of_type = self._tags_of_type.view(-1, 4 if scheme.name == "bioes" else 2)
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all scores from the uniform distribution on [−0.1, 0.1]."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -0.1, 0.1)

    def extra_repr(self) -> str:
        """The arguments, for `print(model)`."""
        return f"num_tags={self.num_tags}, constraints={self.constraints!r}"

    @torch.compiler.disable
    def log_partition(self, emissions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log Z of every post: `(B,)`. Its gradients are the posterior marginals and expected transition counts."""
        words, scores, offset = self._bordered(emissions, mask, constrained=self.constraints == "always")
        return (self._log_partition(words, scores) + offset).to(words.dtype)

    @torch.compiler.disable
    def log_likelihood(
        self, emissions: torch.Tensor, tags: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """Log p of the given tag sequences.

        The gradient is the classic one: counts in the given sequence minus expected counts. The expected counts are
        computed directly from the scan's messages, without backpropagation through time.

        Args:
            emissions: `(B, N, C)`.
            tags: tag ids, int64 `(B, N)`; any value (such as −100) outside the mask.
            mask: boolean `(B, N)`.
            temperature: divides all scores, including transitions; values above 1 flatten the distribution.

        Returns:
            `(B,)`, at most 0; −inf for a sequence that `constraints="always"` rules out.

        Raises:
            ValueError: the shapes do not fit, or a word's tag id is invalid.
        """
        words, scores, _ = self._bordered(emissions, mask, self.constraints == "always", temperature)
        self._check_tags(tags, mask)
        path = tags.masked_fill(~mask, self.num_tags).t()
        path = nn.functional.pad(path, (0, 0, 1, 1), value=self.num_tags)  # (N + 2, B), from border to border
        gold = words.gather(0, path[None, 1:-1]).sum((0, 1)) + scores.take(path[:-1] * len(scores) + path[1:]).sum(0)
        if self.constraints == "always":
            gold = gold.masked_fill(gold < FORBIDDEN / 2, -torch.inf)
        return (gold - self._log_partition(words, scores)).to(words.dtype)

    @torch.compiler.disable
    def log_marginals(self, emissions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log p(y_t = y) for every word and tag (forward–backward), accurate as logarithms however small.

        Differentiable in the emissions and in all scores, by a scan of its own that runs against the first: the
        student of ITA's cross-view alignment (Wang et al., 2022) learns through it.

        Returns:
            `(B, N, C)`. Tags that constraints rule out are at about −1e30. Padding holds the uniform distribution,
            a constant, so that the softmax of any row is a distribution.
        """
        words, scores, _ = self._bordered(emissions, mask, constrained=self.constraints == "always")
        forward, backward = self._log_messages(words, scores)
        marginals = (words + forward + backward).log_softmax(0)[:-1].permute(2, 1, 0)
        marginals = marginals.masked_fill(~mask[..., None], -math.log(self.num_tags))
        return marginals.to(words.dtype)

    @torch.compiler.disable
    @torch.no_grad()
    def decode(self, emissions: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The best tag sequence of every post (Viterbi).

        Returns:
            Its tag ids, int64 `(B, N)`, −1 on padding, and its score s(y), `(B,)`.
        """
        words, scores, offset = self._bordered(emissions, mask, constrained=self.constraints != "none")
        path, total = _viterbi(words, scores)
        return path.masked_fill(~mask, -1), total + offset

    @torch.compiler.disable
    @torch.no_grad()
    def nbest(self, emissions: torch.Tensor, mask: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `n` best tag sequences of every post, all different, best first.

        Returns:
            Their tag ids, int64 `(B, n, N)`, −1 on padding, and their scores s(y), `(B, n)`. Where a post has fewer
            sequences than `n`, the missing ones have tags −1 and score −inf.

        Raises:
            ValueError: `n` is less than 1, or the shapes do not fit.
        """
        if n < 1:
            raise ValueError(f"n={n} best sequences were asked for (expected at least 1)")
        words, scores, offset = self._bordered(emissions, mask, constrained=self.constraints != "none")
        path, total = _nbest(words, scores, n)
        total = total.masked_fill(total < FORBIDDEN / 2, -torch.inf)
        path = path.masked_fill(~mask[:, None] | total.isinf()[..., None], -1)
        return path, total + offset[:, None]

    @torch.compiler.disable
    def span_log_probability(
        self, emissions: torch.Tensor, mask: torch.Tensor, spans: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """Log p that a post's tags spell exactly this entity: these words, no more and no fewer, of this type.

        It is the total probability of all sequences y for which `scheme.spans(y)` holds the span, under the
        distribution of `log_marginals`. The posterior of a chain is itself a chain in either direction, and every
        factor below is one of its conditional probabilities: that the first word has a certain tag of the type, that
        this tag does not continue the one before it, that each further word continues its predecessor, and that the
        word after the last one does not.

        Args:
            emissions: `(B, N, C)`.
            mask: boolean `(B, N)`.
            spans: int64 `(S, 4)`, each row's [post in the batch, first word, one past the last word, index of the type
                in `scheme.types`].
            temperature: divides all scores, see `log_likelihood`.

        Returns:
            `(S,)`, differentiable like `log_marginals`.

        Raises:
            ValueError: there is no scheme, the shapes do not fit, or a span lies outside its post or has no such type.
        """
        if self.scheme is None:
            raise ValueError("span_log_probability needs a tag scheme (LinearChainCRF(…, scheme=TagScheme(labels)))")
        words, scores, _ = self._bordered(emissions, mask, self.constraints == "always", temperature)
        self._check_spans(spans, mask)
        if not len(spans):
            return words.new_zeros(0)
        post, start, end, kind = spans.to(words.device).unbind(1)
        continues, tags = self._continues.to(words.device), self._tags_of_type.to(words.device)[kind]  # (D, D), (S, K)

        forward, backward = self._log_messages(words, scores)
        border = _border(scores)[:, None, None].expand(-1, 1, len(mask))
        left = torch.cat([border, words + forward], 1)  # (D, N + 1, B), log p(y_t | words ≤ t) for t = −1 … N − 1
        right = torch.cat([words + backward, border], 1)  # (D, N + 1, B), the same from the right for t = 0 … N
        first = (words + forward + backward).log_softmax(0)[:, start, post].t().gather(1, tags)  # (S, K)
        before = left[:, start, post].t()[:, None] + scores.t()[tags]
        before = before.log_softmax(-1)  # (S, K, D), from y_t to y_{t-1}
        total = first + before.masked_fill(continues.t()[tags], FORBIDDEN).logsumexp(-1)
        # The longest spans come first, so that the spans that continue are a prefix: one step per word of a span.
        lengths, order = (end - start).sort(descending=True, stable=True)
        post, start, tags, total = post[order], start[order], tags[order], total[order]
        closed, longer = [], len(spans)
        for length, ending in enumerate(lengths.bincount().tolist()[1:], 1):
            post, start, tags, total = post[:longer], start[:longer], tags[:longer], total[:longer]
            after = (right[:, start + length, post].t()[:, None] + scores[tags]).log_softmax(
                -1
            )  # (S', K, D), to y_{t+1}
            longer -= ending
            ended = after[longer:].masked_fill(continues[tags[longer:]], FORBIDDEN).logsumexp(-1)
            closed.append((total[longer:] + ended).logsumexp(-1))
            going, stays = tags[:longer], continues[tags[:longer, :, None], tags[:longer, None, :]]  # (S'', K, K)
            step = after[:longer].gather(2, going[:, None, :].expand_as(stays)).masked_fill(~stays, FORBIDDEN)
            total = (total[:longer, :, None] + step).logsumexp(1)
        return torch.cat(closed[::-1])[order.argsort()].to(words.dtype)

    def _log_partition(self, words: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        dtype, interval = _scaling(words, scores, self.constraints == "always")
        if interval:
            return _LogPartition.apply(words.to(dtype), scores.to(dtype), interval)
        return _log_space_messages(words.to(dtype), scores.to(dtype))[2]

    def _log_messages(self, words: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype, interval = _scaling(words, scores, self.constraints == "always")
        if interval:
            return _LogMessages.apply(words.to(dtype), scores.to(dtype), interval)
        return _log_space_messages(words.to(dtype), scores.to(dtype))[:2]

    def _bordered(
        self, emissions: torch.Tensor, mask: torch.Tensor, constrained: bool, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Emissions `(D, N, B)` and transition scores `(D, D)` with the border tag, laid out for the scans.

        The emissions are relative to their word's best; the third result, `(B,)`, is what this subtracts from a post's
        score.
        """
        if emissions.dim() != 3 or emissions.shape[2] != self.num_tags or not emissions.is_floating_point():
            raise ValueError(
                f"emissions are {emissions.dtype} {tuple(emissions.shape)} (expected floating (B, N, {self.num_tags}))"
            )
        if mask.shape != emissions.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask is {mask.dtype} {tuple(mask.shape)} (expected torch.bool {tuple(emissions.shape[:2])})"
            )
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature} (expected a number > 0)")
        words = emissions.to(torch.promote_types(emissions.dtype, torch.float32))
        is_word = mask.t()  # (N, B)
        border = is_word.to(words.dtype) * FORBIDDEN  # impossible at words and certain on padding
        words = torch.cat([words.permute(2, 1, 0).masked_fill(~is_word, FORBIDDEN), border[None]])  # (D, N, B)
        peak = words.detach().amax(0)
        words = words - peak
        scores = torch.cat([self.transitions, self.start_transitions[None]])
        scores = torch.cat([scores, nn.functional.pad(self.end_transitions, (0, 1))[:, None]], 1).to(words.dtype)
        if temperature != 1:
            words, scores = words / temperature, scores / temperature
        if constrained:
            scores = scores.masked_fill(self._forbidden.to(scores.device), FORBIDDEN)
        return words, scores, peak.sum(0)

    def _check_tags(self, tags: torch.Tensor, mask: torch.Tensor) -> None:
        if tags.shape != mask.shape or tags.dtype != torch.long:
            raise ValueError(f"tags are {tags.dtype} {tuple(tags.shape)} (expected torch.int64 {tuple(mask.shape)})")
        wrong = mask & (tags != tags.clamp(0, self.num_tags - 1))
        if wrong.any():
            row, word = wrong.nonzero()[0].tolist()
            tag = int(tags[row, word])
            raise ValueError(f"post {row}, word {word}: tag id {tag} is not one of 0 … {self.num_tags - 1}")

    def _check_spans(self, spans: torch.Tensor, mask: torch.Tensor) -> None:
        if spans.dim() != 2 or spans.shape[1] != 4 or spans.dtype != torch.long:
            raise ValueError(f"spans are {spans.dtype} {tuple(spans.shape)} (expected torch.int64 (S, 4))")
        assert self.scheme is not None
        lengths = mask.sum(1).tolist()
        for post, start, end, kind in spans.tolist():
            span = f"the span [post {post}, words {start} to {end}, type {kind}]"
            if not 0 <= post < len(lengths):
                raise ValueError(f"{span} names a post outside the batch of {len(lengths)}")
            if not 0 <= start < end <= lengths[post]:
                raise ValueError(f"{span} is empty or lies outside the post's {lengths[post]} words")
            if not 0 <= kind < len(self.scheme.types):
                raise ValueError(f"{span} has none of the {len(self.scheme.types)} types {self.scheme.types}")


def _scan_dtypes(words: torch.Tensor) -> tuple[torch.dtype, ...]:
    """The dtypes that a scan may run in, in order of preference."""
    if words.device.type == "mps":
        return (torch.float32,)
    return (words.dtype, torch.float64) if words.device.type == "cpu" else (torch.float64,)


def _scaling(words: torch.Tensor, scores: torch.Tensor, constrained: bool) -> tuple[torch.dtype, int]:
    """The dtype for a scaled scan, and how many words may pass between two normalisations; 0 if no dtype suffices.

    A step multiplies the largest entry of a message by between exp(−r) and D, r being the range of `scores`, and no
    entry falls below exp(−r) times the largest: k steps in each direction and the one that joins them need (2k − 1) r.
    Forbidden transitions make tags reachable only by way of others, in three steps at most in BIO and BIOES, so that
    the emissions' range counts as well and nine steps more are needed.
    """
    words, scores = words.detach(), scores.detach()
    lowest = scores.masked_fill(scores < FORBIDDEN / 2, torch.inf) if constrained else scores
    step = scores.amax() - lowest.amin()
    if constrained and words.numel():
        step = step + (words[:-1].amax(0) - words[:-1].amin(0)).amax()
    largest = max(float(step), math.log(len(scores)))
    for dtype in _scan_dtypes(words):
        steps = -0.8 * math.log(torch.finfo(dtype).tiny) / largest
        if steps >= 1 + 9 * constrained:
            return dtype, int((steps + 1 - 9 * constrained) / 2)
    return dtype, 0


def _border(scores: torch.Tensor) -> torch.Tensor:
    """The emissions outside a post, `(D,)`: the border tag is certain."""
    border = scores.new_full((len(scores),), FORBIDDEN)
    border[-1] = 0
    return border


class _Scan(NamedTuple):
    """A scan of both directions: forward, and backward from the last word."""

    messages: torch.Tensor  # (2, D, N + 1, B), p leaving the border, then each word; the product with `factors` is a~
    factors: torch.Tensor  # (2, D, D), [direction, to, from], exp of the transition scores less their maximum
    log_partition: torch.Tensor  # (B,)


def _scan(words: torch.Tensor, scores: torch.Tensor, interval: int) -> _Scan:
    tags, length, batch = words.shape
    top = scores.amax()
    factors = (scores - top).exp()
    factors = torch.stack([factors.t(), factors])
    log_partition = ((length + 1) * top).repeat(batch)
    messages = words.new_empty(2, tags, length + 1, batch)
    messages[:, :, 0] = 0
    messages[:, -1, 0] = 1
    # the words' weights, which the loop turns into messages in place
    torch.exp(words, out=messages[0, :, 1:])
    messages[1, :, 1:] = messages[0, :, 1:].flip(1)
    message, *weights = messages.unbind(2)  # (2, D, B) each
    arriving = torch.empty_like(message)
    for word, weight in enumerate(weights, 1):
        torch.bmm(factors, message, out=arriving)
        message = weight.mul_(arriving)
        if word % interval == 0:
            total = message.sum(1, keepdim=True)
            message /= total
            log_partition += total[0, 0].log()
    torch.bmm(factors, message, out=arriving)
    return _Scan(messages, factors, log_partition + arriving[0, -1].log())


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The batched matrix product, in the dtype it is given even under autocast."""
    return torch.bmm(left, right, out=left.new_empty(len(left), left.shape[1], right.shape[2]))


class _LogPartition(torch.autograd.Function):
    """log Z, with the posterior marginals and the expected transition counts as its gradients."""

    @staticmethod
    def forward(ctx: Any, words: torch.Tensor, scores: torch.Tensor, interval: int) -> torch.Tensor:
        messages, factors, log_partition = _scan(words, scores, interval)
        ctx.save_for_backward(messages, factors)
        return log_partition

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        messages, factors = ctx.saved_tensors
        left, right = messages[:1].flatten(2), messages[1].flip(1)  # (1, D, (N + 1)B) and (D, N + 1, B), for t = 0 … N
        joint = _product(factors[:1], left).view_as(right).mul_(right)
        weight = grad / joint.sum(0)
        pairs = _product(left, right.mul_(weight).flatten(1).t()[None])[0]
        return joint.mul_(weight)[:, :-1], factors[1] * pairs, None


class _LogMessages(torch.autograd.Function):
    """The logarithms of the messages arriving at every word, up to a constant per word.

    Let A_t be the gradient by log a~_t, and v_t(y) = A_t(y) / a~_t(y). The gradient by log p_{t-1}(y') is then
    p_{t-1}(y') Σ_y exp T(y', y) v_t(y). It is also that by e_{t-1}(y'), and it joins A_{t-1}: a scan like the first,
    the other way round.
    """

    @staticmethod
    def forward(
        ctx: Any, words: torch.Tensor, scores: torch.Tensor, interval: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        messages, factors, _ = _scan(words, scores, interval)
        messages = messages[:, :, :-1].contiguous()
        arriving = _product(factors, messages.flatten(2)).view_as(messages)
        ctx.save_for_backward(messages, arriving, factors)
        forward, backward = arriving.log().clamp_min_(FORBIDDEN)
        return forward, backward.flip(1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_forward: torch.Tensor, grad_backward: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        messages, arriving, factors = ctx.saved_tensors  # (2, D, N, B), twice
        back = factors.transpose(1, 2)
        grads = torch.stack([grad_forward, grad_backward.flip(1)])  # A, once the loop has passed
        ratios = arriving.reciprocal().masked_fill_(arriving == 0, 0)  # v, likewise
        by_word = torch.zeros_like(grads)
        product = grads.new_empty(2, grads.shape[1], grads.shape[3])
        message_at, grad_at, ratio_at, by_word_at = (x.unbind(2) for x in (messages, grads, ratios, by_word))
        for t in reversed(range(len(grad_at))):
            ratio_at[t].mul_(grad_at[t])
            if t:
                torch.bmm(back, ratio_at[t], out=product)
                torch.mul(product, message_at[t], out=by_word_at[t - 1])
                grad_at[t - 1].add_(by_word_at[t - 1])
        pairs = _product(messages.flatten(2), ratios.flatten(2).transpose(1, 2))  # (2, D, D), [direction, from, to]
        return by_word[0] + by_word[1].flip(1), factors[1] * (pairs[0] + pairs[1].t()), None


def _log_space_messages(words: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log messages arriving from the left and from the right, each `(D, N, B)`, and log Z, `(B,)`, for any scores."""
    steps, batch = scores[..., None], words.shape[2]
    forward, backward = [steps[-1].expand(-1, batch)], [steps[:, -1].expand(-1, batch)]
    for word in words.unbind(1):
        forward.append(((forward[-1] + word)[:, None] + steps).logsumexp(0))
    for word in reversed(words.unbind(1)):
        backward.append((backward[-1] + word + steps).logsumexp(1))
    left, right = torch.stack(forward, 1), torch.stack(backward[::-1], 1)  # (D, N + 1, B)
    return left[:, :-1], right[:, 1:], forward[-1][-1]


def _viterbi(words: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best path, `(B, N)`, and its score, `(B,)`.

    Two scans meet in the middle of the chain, and the path is traced from there in both directions: half the steps of
    one scan, on twice the rows. The scans keep only maxima; the argmax is recomputed along the path.
    """
    tags, length, batch = words.shape
    if not length:
        return words.new_zeros(batch, 0, dtype=torch.long), words.new_zeros(batch)
    if length % 2:  # an even chain has a middle: add a word of padding
        words = torch.cat([words, _border(scores)[:, None, None].expand(-1, 1, batch)], 1)
    half = words.shape[1] // 2
    word_at = torch.stack([words[:, :half], words[:, half:].flip(1)]).unbind(2)  # (2, D, B) each
    steps = torch.stack([scores, scores.t()])[..., None]  # (2, from, to, 1)
    best = words.new_empty(half, 2, tags, batch)
    best_at, best_from = best.unbind(), best[:, :, :, None].unbind()
    torch.add(steps[:, -1], word_at[0], out=best_at[0])
    ways = words.new_empty(2, tags, tags, batch)
    for t in range(1, half):
        torch.add(best_from[t - 1], steps, out=ways)
        torch.amax(ways, 1, out=best_at[t]).add_(word_at[t])

    total, meeting = (best_from[-1][0] + scores[..., None] + best_at[-1][1]).flatten(0, 1).max(0)
    steps = torch.cat([scores.t(), scores])  # a row per direction and tag: the scores of the steps into the tag
    offset = torch.tensor([0, tags], device=words.device).repeat_interleave(batch)
    best_at = best.transpose(2, 3).unbind()  # (2, B, D) each
    path = offset.new_empty(half, 2 * batch)
    path_at = path.unbind()
    torch.cat([meeting // tags, meeting % tags + tags], out=path_at[-1])
    ways = words.new_empty(2 * batch, tags)
    ways_by_direction = ways.view(2, batch, tags)
    for t in reversed(range(half - 1)):
        torch.index_select(steps, 0, path_at[t + 1], out=ways)
        ways_by_direction.add_(best_at[t])
        torch.argmax(ways, 1, out=path_at[t]).add_(offset)
    forward, backward = (path - offset).tensor_split(2, dim=1)
    return torch.cat([forward, backward.flip(0)])[:length].t(), total


def _nbest(words: torch.Tensor, scores: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n best paths, `(B, n, N)`, and their scores, `(B, n)`, below `FORBIDDEN / 2` for those that do not exist."""
    tags, length, batch = words.shape
    best = words.new_full((batch, tags, n), -torch.inf)  # the n best ways to every tag
    best[:, -1, 0] = 0
    pointers = []
    for t in range(length + 1):
        ways = (best[:, None] + scores.t()[..., None]).flatten(2)  # (B, to, from * n)
        best, pointer = ways.topk(n)
        pointers.append(pointer.flatten(1))
        if t < length:
            best = best + words[:, t].t()[..., None]
    way = ((tags - 1) * n + torch.arange(n, device=words.device)).expand(batch, n)  # at the border behind the post
    path = way.new_empty(batch, n, length)
    for t in reversed(range(length)):
        way = pointers[t + 1].gather(1, way)
        path[..., t] = way // n
    return path, best[:, -1]
