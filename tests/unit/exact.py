"""Models in float64, for comparing two ways to one result: what differs then is no rounding.

In float32 each processor adds in an order of its own, and a sum differs in its last digits. Where a tolerance lies
near those digits, a comparison holds on one processor and fails on another.
"""

from types import MethodType

import torch


def in_float64(model):
    """The model itself, its weights and all that is computed with them in float64."""
    from bitsandbytes.nn import Linear4bit
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    for layer in model.modules():
        if isinstance(layer, LlamaRMSNorm):  # computes in float32, whatever its weights are held in
            layer.forward = MethodType(rms_norm, layer)
        if isinstance(layer, Linear4bit):  # knows no float64
            layer.forward = MethodType(dequantised, layer)
    return model.double()


def rms_norm(layer, states):
    return torch.nn.functional.rms_norm(states, layer.weight.shape, layer.weight, layer.variance_epsilon)


def dequantised(layer, states):
    from bitsandbytes.functional import dequantize_4bit

    weights = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return torch.nn.functional.linear(states, weights.to(states.dtype), layer.bias)


def summed_in_float64(model):
    """The model itself; TRL's trainers then add up a text's log-probabilities in float64. A token's is the head's own.

    A text's is in the hundreds: there float32 has steps of 1.5e-5, and DPO's gradient hangs on the difference of four.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    by_head = inner.forward

    def forward(*args, **kwargs):
        found = by_head(*args, **kwargs)
        if kwargs.get("fused_lm_head"):
            found.log_probs = found.log_probs.double()
        return found

    inner.forward = forward
    return model
