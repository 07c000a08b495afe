"""How does each text of a packed row keep to itself, without the work of a mask over the whole row?

>>> keep_to_texts(model)               # then model(input_ids=…, position_ids=…) as before

A row of 256 tokens holds about six chats of 40. With a mask, sdpa works out 256 × 256 scores and throws six in seven of
them away; here each text is taken out of its row and attends to itself alone: 6 × 40 × 40 scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "texts_of_a_row"  # under which transformers knows it


def keep_to_texts(model: PreTrainedModel) -> None:
    """Lets a Llama's attention work through packed rows text by text, on a CPU; any other model is left as it is.

    Registers an attention function with transformers (its documentation: "Attention interface") and switches the model
    to it. A batch without an attention mask, whose position ids begin anew at each text, goes through it; every other
    call goes to sdpa as before, generation and padded batches among them. Outputs and gradients are sdpa's to rounding.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind = inner.config.model_type, inner.config._attn_implementation, inner.device.type
    if kind == ("llama", "sdpa", "cpu"):
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, mask_where_needed)
        inner.set_attn_implementation(NAME)


def mask_where_needed(*args, attention_mask: torch.Tensor | None = None, q_length: int, kv_length: int, **kwargs):
    """sdpa's mask; None for a batch of whole rows without padding, for `attend` finds the texts by itself."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(*args, attention_mask=attention_mask, q_length=q_length, kv_length=kv_length, **kwargs)


def attend(module, query, key, value, attention_mask, position_ids=None, dropout=0.0, scaling=None, **kwargs):
    """Causal attention inside each text of each row. query: rows × heads × tokens × size; key and value likewise, with
    fewer heads where they are grouped. Returns rows × tokens × heads × size and None, as transformers asks.
    """
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    rows, heads, tokens, size = query.shape
    whole = attention_mask is not None or position_ids is None or key.shape[2] != tokens
    if whole or not (position_ids[:, 1:] == 0).any():
        options = {"dropout": dropout, "scaling": scaling, "position_ids": position_ids}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options, **kwargs)
    groups = heads // key.shape[1]
    states = [each.transpose(1, 2).flatten(0, 1) for each in (query, repeat_kv(key, groups), repeat_kv(value, groups))]
    order, attended = [], []
    for places, own in texts_by_length(position_ids.expand(rows, tokens)):
        taken = [each[places].transpose(1, 2) for each in states]
        found = torch.nn.functional.scaled_dot_product_attention(
            *taken, dropout_p=dropout, scale=scaling, is_causal=True
        )
        order.append(places[own])
        attended.append(found.transpose(1, 2)[own])
    return torch.cat(attended)[torch.cat(order).argsort()].view(rows, tokens, heads, size), None


def texts_by_length(position_ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The places of each text, counted through all rows end to end; texts of like length (up to a factor of two)
    together.

    position_ids: rows × tokens. Returns, for each group, `places` (texts × longest; a shorter text repeats its last
    place) and `own` (the same shape; False for those repeats).

    >>> texts_by_length(torch.tensor([[0, 1, 0, 1, 2]]))
    [(tensor([[0, 1, 1], [2, 3, 4]]), tensor([[True, True, False], [True, True, True]]))]
    """
    import torch

    starts = (position_ids == 0) | (torch.arange(position_ids.shape[1]) == 0)
    first = starts.flatten().nonzero().squeeze(1)
    lengths = torch.diff(first, append=torch.tensor([position_ids.numel()]))
    magnitude = torch.log2(lengths.float()).ceil()
    groups = []
    for each in magnitude.unique():
        start, length = first[magnitude == each, None], lengths[magnitude == each, None]
        step = torch.arange(int(length.max()))
        groups.append((start + step.minimum(length - 1), step < length))
    return groups
