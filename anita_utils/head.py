"""The language-model head where it is needed: on the tokens that are scored, and on no others.

>>> score_labels_only(trainer.model)         # once, after a TRL trainer is built

The head multiplies each token's state by the whole vocabulary, which for a small model on a CPU is half of all the
work. A question's tokens are not scored, nor padding, so their share of it is wasted. On a GPU with Triton TRL leaves
them out itself; elsewhere it scores every place, recomputes the logits in the backward pass, and is half as fast.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING

from anita_utils.data import IGNORED

AT_ONCE = 64  # tokens whose entropy is worked out together: their logits stay in the processor's cache

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def score_labels_only(model) -> None:
    """Lets TRL's trainers compute the head on labelled tokens only. No effect where TRL does so already (Triton).

    model: the model of a built SFTTrainer or DPOTrainer, with or without adapters.

    Both trainers ask their model for log-probabilities with `fused_lm_head=True`; this answers that call and leaves
    every other (generation, evaluation) as it was. Losses and gradients are those of TRL's own, to rounding.
    """
    from trl.trainer.utils import FusedCausalLMOutput, _use_triton

    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    if _use_triton(inner.device):
        return
    by_trl = inner.forward

    def forward(self, *args, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs):
        if not fused_lm_head:
            return by_trl(*args, **kwargs, **({} if labels is None else {"labels": labels}))
        states = self.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        mask = labels != IGNORED
        scores = token_scores(self.get_output_embeddings()(states[mask]), labels[mask])
        placed = {name: score.new_zeros(mask.shape).masked_scatter(mask, score) for name, score in scores.items()}
        return FusedCausalLMOutput(label_mask=mask, **placed)  # the trainers make their own loss of these

    inner.forward = types.MethodType(forward, inner)


def token_scores(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What TRL's trainers log and learn from, for each token: log-probability, entropy, mean logit, and whether right.

    logits: shape (tokens, vocabulary); labels: shape (tokens,). The first, "log_probs", has a gradient; the others,
    "entropy" in nats, "mean_logits" and "is_top1", are for the log.
    """
    import torch

    logits = logits.float()
    log_probs = logits.log_softmax(-1)
    of_labels = log_probs.gather(-1, labels[:, None]).squeeze(-1)
    with torch.no_grad():
        return {
            "log_probs": of_labels,
            "entropy": torch.cat([-(few.exp() * few).sum(-1) for few in log_probs.split(AT_ONCE)]),
            "mean_logits": logits.mean(-1),
            "is_top1": logits.argmax(-1) == labels,
        }
