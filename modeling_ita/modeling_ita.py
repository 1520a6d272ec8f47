"""ITA: one text encoder for both views (the post alone, and with its visual context), a CRF, and three losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from .checkpoint_files import reading
from .configuration_ita import ItaConfig
from .crf import LinearChainCRF
from .entity_tagger import EntityTagger, check_encoder, first_pieces, without_pooler
from .tag_scheme import TagScheme

# Encoders that take a position and an attention mask for every token, so that one row can hold both views.
_SIDE_BY_SIDE = {"bert", "roberta", "xlm-roberta"}

IGNORED = -100  # the label of positions that are not words, as everywhere in transformers


@dataclass
class ItaOutput(ModelOutput):
    """Output of `ItaForTokenClassification` (B posts, N words, C tags).

    If the batch has `word_positions`, N counts words. Otherwise N is the number of tokens L, and positions that are
    not words hold the uniform distribution.

    Args:
        loss: weighted sum of the losses below, if labels were given.
        logits: `(B, N, C)`, log posterior marginals of the textual view, or of the cross-modal view if it is the only
            one. Their softmax is the posterior itself.
        emissions: `(B, N, C)`, the tag scores from which the CRF computed `logits`, in float32.
        cross_logits: `(B, N, C)`, log posterior marginals of the cross-modal view, if the batch holds both views.
        cross_emissions: `(B, N, C)`, the tag scores behind `cross_logits`.
        text_loss: L_T, the negative log-likelihood of the tags in the textual view, mean over posts.
        cross_loss: L_I+T, the same in the cross-modal view.
        cva_loss: L_CVA, the cross-view alignment, mean over posts.
        hidden_states: hidden states of the encoder's single call, in the layout of that call, if requested.
        attentions: attentions of the encoder's single call, in the layout of that call, if requested.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    emissions: torch.Tensor | None = None
    cross_logits: torch.Tensor | None = None
    cross_emissions: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    cross_loss: torch.Tensor | None = None
    cva_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class _View(NamedTuple):
    """The tokens of one view: R rows (one per post, or per window of a long post) of L tokens."""

    input_ids: torch.Tensor  # (R, L)
    attention_mask: torch.Tensor  # (R, L)
    token_type_ids: torch.Tensor | None  # (R, L)


class ItaForTokenClassification(EntityTagger):
    """ITA (Wang et al., NAACL 2022): tags each word from its first subword, with a linear-chain CRF.

    Only the encoder reads the visual context; the CRF sees the words of the post, which are the same in both views.
    """

    config: ItaConfig
    config_class = ItaConfig
    base_model_prefix = "encoder"
    new_model = "from_text_encoder"
    supports_gradient_checkpointing = True
    # Only the encoder has attention, and it checks for itself which implementations it supports.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["crf"]
    _keep_in_fp32_modules = ["classifier", "crf"]  # quantizers leave these alone; float16 leaves them in float32

    def __init__(self, config: ItaConfig) -> None:
        super().__init__(config)
        self.encoder = without_pooler(AutoModel.from_config(config.text_config))
        scheme = config.tag_scheme
        config.label2id = dict(scheme.label2id)  # from_pretrained(…, id2label=…) keeps the checkpoint's label2id
        self.classifier = nn.Linear(self.encoder.config.hidden_size, len(scheme))
        self.crf = LinearChainCRF(len(scheme), scheme=scheme, constraints=config.constraints)
        self.post_init()

    @classmethod
    def from_text_encoder(
        cls,
        name_or_path: str,
        labels: Sequence[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        dtype: torch.dtype | str = torch.float32,
        attn_implementation: str | None = None,
        **config: Any,
    ) -> ItaForTokenClassification:
        """Creates a model from a pretrained text encoder, with a new classifier and CRF.

        Args:
            name_or_path: the encoder, a Hub id or a folder, as in `AutoModel.from_pretrained`.
            labels: the tag set, `["O", "B-PER", "I-PER", …]`.
            revision: revision of the Hub repository.
            token: token for a private repository.
            dtype: data type of the weights.
            attn_implementation: `"sdpa"`, `"eager"`, …; default: the encoder's own.
            **config: fields of `ItaConfig`.

        Raises:
            OSError: the encoder does not exist.
            ValueError: `labels` is not a BIO or BIOES tag set.
        """
        id2label = dict(enumerate(TagScheme(labels).labels))
        source = {"revision": revision, "token": token}
        with reading(name_or_path):
            check_encoder(name_or_path, source)
            encoder = AutoModel.from_pretrained(
                name_or_path, dtype=dtype, attn_implementation=attn_implementation, **source
            )
        if "sep_token_id" not in config:
            with reading(name_or_path, "tokenizer.json"):
                tokenizer = AutoTokenizer.from_pretrained(name_or_path, **source)
            config |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        text_config = encoder.config.to_dict()
        text_config.pop("_name_or_path", None)  # may be a folder of this machine
        model = cls._from_config(
            ItaConfig(text_config=text_config, id2label=id2label, dtype=encoder.dtype, **config),
            attn_implementation=encoder.config._attn_implementation,
        )
        model.encoder.load_state_dict(without_pooler(encoder).state_dict())
        return model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        cross_input_ids: torch.Tensor | None = None,
        cross_attention_mask: torch.Tensor | None = None,
        cross_token_type_ids: torch.Tensor | None = None,
        word_positions: torch.Tensor | None = None,
        word_rows: torch.Tensor | None = None,
        has_context: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        emissions_only: bool = False,
        **kwargs: Any,
    ) -> ItaOutput:
        """Tags the words of B posts in the views that the batch holds (`ItaProcessor` creates these tensors).

        Args:
            input_ids: `(R, L)`, textual view T: the post's tokens. R = B unless a post is longer than the window.
            attention_mask: `(R, L)`, 1 on tokens, 0 on padding. Default: all ones.
            token_type_ids: `(R, L)`, for encoders that have them.
            cross_input_ids: `(R, L')`, cross-modal view I+T: the same rows, each followed by the visual context.
            cross_attention_mask: `(R, L')`.
            cross_token_type_ids: `(R, L')`.
            word_positions: `(B, N)`, index of each word's first subword in its row; −1 is padding. The post comes
                first in both views, so one tensor serves both. Default: every token before the first separator is a
                word; if labels are given, every token whose label is not −100.
            word_rows: `(B, N)`, the row of each word. Default: word (b, n) is in row b.
            has_context: `(B,)`, boolean, whether the cross-modal view of a post holds context; posts without context
                do not contribute to L_CVA. Default: all true.
            labels: `(B, N)` tag ids, −100 on padding; `(B, L)` without `word_positions`.
            emissions_only: whether to skip the logits, which need a scan of the CRF; ignored with `labels` or without
                `word_positions`.
            **kwargs: passed to the encoder, such as `output_hidden_states`.

        Raises:
            ValueError: the batch holds no view; or `word_positions` is missing and the batch holds the cross-modal
                view or the configuration does not set `sep_token_id`.
        """
        views = [
            _View(ids, torch.ones_like(ids) if mask is None else mask, types)
            for ids, mask, types in (
                (input_ids, attention_mask, token_type_ids),
                (cross_input_ids, cross_attention_mask, cross_token_type_ids),
            )
            if ids is not None
        ]
        if not views:
            raise ValueError("the batch holds no view (expected input_ids, cross_input_ids, or both)")

        pieces_as_words = word_positions is None
        if word_positions is None:
            if cross_input_ids is not None:
                raise ValueError("the cross-modal view needs word_positions (ItaProcessor makes them)")
            is_word = self._pieces_of_the_post(views[0]) if labels is None else labels != IGNORED  # (B, L)
            word_positions = _positions(is_word)  # (B, N = L)
            if labels is not None:
                labels = labels.gather(1, word_positions.clamp(min=0))
        mask = word_positions >= 0  # (B, N)

        hidden, encoded = self._encode(views, kwargs)
        words = torch.cat([first_pieces(h, word_positions, word_rows) for h in hidden])  # (V·B, N, H), of V views
        words = self._drop_words(words).to(self.classifier.weight.dtype)
        emissions = self.classifier(words).float()  # (V·B, N, C)
        masks = mask.repeat(len(views), 1)  # (V·B, N)
        if emissions_only and labels is None and not pieces_as_words:
            return ItaOutput(**_of_views(emissions, "emissions", len(views)))
        logits = self.crf.log_marginals(emissions, masks)  # (V·B, N, C)

        losses = {}
        if labels is not None:
            tags = labels.clamp(min=0).repeat(len(views), 1)
            nll = -self.crf.log_likelihood(emissions, tags, masks)  # (V·B,)
            losses = self._losses(nll, logits, mask, has_context, [input_ids is not None, cross_input_ids is not None])
        if pieces_as_words:
            logits = _at_pieces(logits, word_positions, empty=-math.log(logits.shape[-1]))
            emissions = _at_pieces(emissions, word_positions, empty=0.0)

        return ItaOutput(
            **losses,
            **_of_views(logits, "logits", len(views)),
            **_of_views(emissions, "emissions", len(views)),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _encode(self, views: list[_View], kwargs: dict[str, Any]) -> tuple[Sequence[torch.Tensor], BaseModelOutput]:
        """Encodes all views in one call: one tensor `(R, L, H)` per view, and the encoder's output."""
        if len(views) == 1:
            encoded = self.encoder(**_present(views[0]), **kwargs)
            return [encoded.last_hidden_state], encoded
        text, cross = views
        attention = self.encoder.config._attn_implementation
        if self.encoder.config.model_type in _SIDE_BY_SIDE and attention in ("sdpa", "eager"):
            encoded = self.encoder(**self._side_by_side(text, cross), **kwargs)
            lengths = [view.input_ids.shape[1] for view in views]
            return encoded.last_hidden_state.split(lengths, dim=1), encoded
        encoded = self.encoder(**_stacked(text, cross, self.encoder.config.pad_token_id or 0), **kwargs)
        return encoded.last_hidden_state.chunk(2), encoded

    def _side_by_side(self, text: _View, cross: _View) -> dict[str, torch.Tensor]:
        """Both views in one row, T then I+T, masked from each other, so that the shorter one needs no padding."""
        input_ids = torch.cat([text.input_ids, cross.input_ids], dim=1)  # (R, L + L')
        lengths = [text.input_ids.shape[1], cross.input_ids.shape[1]]
        # RoBERTa counts positions from its padding id + 1.
        first = 0 if self.encoder.config.model_type == "bert" else self.encoder.config.pad_token_id + 1
        positions = torch.cat([torch.arange(first, first + n, device=input_ids.device) for n in lengths])
        is_cross = torch.arange(sum(lengths), device=input_ids.device) >= lengths[0]  # (L + L',)
        is_piece = torch.cat([text.attention_mask, cross.attention_mask], dim=1).bool()  # (R, L + L')
        attends = (is_cross[:, None] == is_cross) & is_piece[:, None, None, :]  # (R, 1, L + L', L + L')
        if self.encoder.config._attn_implementation == "eager":  # adds the mask to the scores
            attends = torch.zeros_like(attends, dtype=self.encoder.dtype).masked_fill(
                ~attends, torch.finfo(self.encoder.dtype).min
            )
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attends,
            "position_ids": positions[None].expand_as(input_ids),
        }
        if text.token_type_ids is not None and cross.token_type_ids is not None:
            inputs["token_type_ids"] = torch.cat([text.token_type_ids, cross.token_type_ids], dim=1)
        return inputs

    def _drop_words(self, words: torch.Tensor) -> torch.Tensor:
        """Word dropout: in training, zeroes whole word vectors of `(B, N, H)` without rescaling the rest."""
        if not self.training or self.config.word_dropout == 0:
            return words
        keep = torch.rand(words.shape[:2], device=words.device) >= self.config.word_dropout
        return words * keep[..., None]

    def _losses(
        self,
        nll: torch.Tensor,
        logits: torch.Tensor,
        mask: torch.Tensor,
        has_context: torch.Tensor | None,
        views: list[bool],
    ) -> dict[str, torch.Tensor]:
        """The losses by name, and `loss`, their weighted sum (method section 4; `views`: is T there, is I+T there)."""
        config = self.config
        names = [name for name, present in zip(("text_loss", "cross_loss"), views, strict=True) if present]
        losses = {name: view.mean() for name, view in zip(names, nll.chunk(len(names)), strict=True)}
        if all(views) and config.cva_loss_weight:
            student, teacher = logits.chunk(2)
            temperature = cast(float, config.cva_temperature)
            losses["cva_loss"] = _alignment(student, teacher.detach(), mask, has_context, temperature)
        losses["loss"] = sum(getattr(config, f"{name}_weight") * loss for name, loss in losses.items())
        return losses

    def _pieces_of_the_post(self, view: _View) -> torch.Tensor:
        """Which tokens precede the first separator, `(R, L)`, boolean, without the opening token."""
        if self.config.sep_token_id is None:
            raise ValueError(
                "word_positions is missing, and without config.sep_token_id the end of the post is unknown: pass the "
                "processor's whole batch, or set config.sep_token_id to the tokenizer's"
            )
        before_separator = (view.input_ids == self.config.sep_token_id).cumsum(1) == 0
        opening = view.input_ids == (-1 if self.config.cls_token_id is None else self.config.cls_token_id)
        return before_separator & ~opening & view.attention_mask.bool()


def _alignment(
    student: torch.Tensor,
    teacher: torch.Tensor,
    mask: torch.Tensor,
    has_context: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """L_CVA = τ² · mean over posts of Σ_words Σ_tags p (log p − log q), p of the teacher, q of the student.

    Args:
        student: `(B, N, C)`, log marginals of the textual view.
        teacher: `(B, N, C)`, log marginals of the cross-modal view, detached.
        mask: `(B, N)`, true on words.
        has_context: `(B,)`; a post without context adds 0.
        temperature: τ.
    """
    q = (student / temperature).log_softmax(-1)
    p = (teacher / temperature).log_softmax(-1)
    divergence = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)  # (B, N)
    counts = mask if has_context is None else mask & has_context[:, None]
    return temperature**2 * divergence.masked_fill(~counts, 0).sum() / max(len(mask), 1)


def _of_views(values: torch.Tensor, name: str, views: int) -> dict[str, Any]:
    """The values of both views, `(V·B, N, C)`, by their names in the output."""
    return dict(zip((name, f"cross_{name}"), values.chunk(views), strict=False))


def _present(view: _View) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in view._asdict().items() if tensor is not None}


def _stacked(text: _View, cross: _View, padding: int) -> dict[str, torch.Tensor]:
    """The rows of both views, T first, padded to the same length: `(2R, max(L, L'))`."""
    length = max(text.input_ids.shape[1], cross.input_ids.shape[1])

    def stack(first: torch.Tensor, second: torch.Tensor, fill: int) -> torch.Tensor:
        pad = nn.functional.pad
        return torch.cat([pad(x, (0, length - x.shape[1]), value=fill) for x in (first, second)])

    fills = {"input_ids": padding, "attention_mask": 0, "token_type_ids": 0}
    texts, crosses = _present(text), _present(cross)
    return {name: stack(texts[name], crosses[name], fills[name]) for name in texts.keys() & crosses.keys()}


def _positions(is_word: torch.Tensor) -> torch.Tensor:
    """Indices of the true entries of each row of `(B, L)`, followed by −1."""
    order = torch.argsort((~is_word).int(), dim=1, stable=True)
    return order.masked_fill(~is_word.gather(1, order), -1)


def _at_pieces(values: torch.Tensor, positions: torch.Tensor, empty: float) -> torch.Tensor:
    """Moves values of words `(B, L, C)` to the positions of their tokens; all others get `empty`."""
    index = positions.masked_fill(positions < 0, positions.shape[1])[..., None].expand_as(values)
    spread = values.new_full((len(values), values.shape[1] + 1, values.shape[2]), empty)
    return spread.scatter(1, index, values)[:, :-1]
