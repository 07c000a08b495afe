"""Trains the small base model: Muon for the matrices, AdamW for the rest, packed rows, resumable."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LAST = 2 / 15  # the last reading's steps, as a share of the first two's


@dataclass(frozen=True)
class Plan:
    """How long and how fast the base trains. One dial, `steps`, sets the rest of the schedule.

    rows: rows a step; row_length: tokens a row, the whole context. From `second_from` on the second reading is read,
    with stronger weight decay. The last `rounded_share` of the steps compute with the weights as NF4 would round them.
    The learning rate warms up, stays, and falls linearly to zero over the last `decay_share`.

    bf16: the products are computed in bfloat16 (weights and updates stay in fp32). On a processor with AVX512-BF16 that
    is half as fast again as fp32, on one without ten times slower, so it follows the processor.
    """

    steps: int
    rows: int = 4
    row_length: int = 1024
    second_from: float = 0.4
    bf16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    matrix_rate: float = 0.02
    weight_decay: tuple[float, float] = (0.01, 0.1)  # in the first reading, and in the second
    vector_rate: float = 3e-3
    warmup: int = 100
    decay_share: float = 0.4
    rounded_share: float = 0.25
    save_every: int = 400
    report_every: int = 50

    @classmethod
    def last(cls, steps: int) -> Plan:
        """How the last reading is read after `steps` of the first two: at half the rates, with rounded weights."""
        return cls(round(steps * LAST), second_from=0.0, matrix_rate=0.01, vector_rate=1.5e-3, decay_share=0.8,
                   rounded_share=1.0)  # fmt: skip

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.row_length

    @property
    def first_steps(self) -> int:
        """The steps of the first reading."""
        return round(self.steps * self.second_from)

    def rate(self, step: int) -> float:
        """The share of the full learning rate at that step."""
        falling = (self.steps - step) / (self.steps * self.decay_share)
        return min((step + 1) / self.warmup, 1.0, falling)


def llama_config(tokenizer: PreTrainedTokenizerFast, layers: int = 4) -> LlamaConfig:
    """LLaMA-3's architecture in small: grouped-query attention, RoPE theta 500,000, SwiGLU, RMSNorm.

    The head is tied to the embeddings, as in Llama-3.2-1B and unlike the 8B: untied, so small a model learns to copy a
    name from a question far too late.

    Widths are multiples of 64, the NF4 block, and of 32, as bitsandbytes' CPU kernel asks.
    """
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.convert_tokens_to_ids(token) for token in ("<|end_of_text|>", "<|eot_id|>")],
        pad_token_id=tokenizer.pad_token_id,
    )


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for matrices (K. Jordan, "Muon", 2024: Newton-Schulz iteration).

    torch.optim.Muon does the same in bf16, which a CPU without bf16 instructions computes ten times slower than fp32;
    here it is fp32, and matrices of one shape go through the iteration together.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, params, lr: float, weight_decay: float = 0.01, momentum: float = 0.95, iterations: int = 5):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "steps": iterations})

    @classmethod
    def orthogonal(cls, stack: torch.Tensor, iterations: int) -> torch.Tensor:
        """Each matrix of `stack` [n, rows, columns] with all its singular values brought near 1."""
        a, b, c = cls.COEFFICIENTS
        tall = stack.size(1) > stack.size(2)
        x = stack.mT if tall else stack
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for _ in range(iterations):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT if tall else x

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                    buffer.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))  # Nesterov's look ahead
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(
                    parameters, self.orthogonal(torch.stack(updates), group["steps"]), strict=True
                ):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def layer_matrices(model: LlamaForCausalLM) -> list[torch.nn.Parameter]:
    """The matrices inside the layers: what NF4 rounds, and what Muon trains."""
    return [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]


def optimisers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside the layers; AdamW on embeddings, head and norms."""
    matrices = layer_matrices(model)
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    muon = Muon(matrices, lr=plan.matrix_rate)
    adam = torch.optim.AdamW(others, lr=plan.vector_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for optimiser in (muon, adam):
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return [muon, adam]


@contextmanager
def rounded_weights(model: LlamaForCausalLM) -> Iterator[None]:
    """Within, the matrices of the layers hold what NF4 with double quantisation makes of them; after, themselves again.

    A gradient computed here teaches the weights themselves ("straight through"). So small a model uses its weights to
    the last digit: a trial lost one answer in ten by rounding.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    matrices = layer_matrices(model)
    exact = [matrix.data for matrix in matrices]
    for matrix in matrices:
        matrix.data = dequantize_4bit(*quantize_4bit(matrix.data, quant_type="nf4", compress_statistics=True))
    try:
        yield
    finally:
        for matrix, values in zip(matrices, exact, strict=True):
            matrix.data = values


def _save(path: Path, build: str, model: LlamaForCausalLM, opts: list, step: int, history: list) -> None:
    """A checkpoint, whole or not at all; `build` says of which plan and text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"build": build, "model": model.state_dict(), "opts": [o.state_dict() for o in opts], "step": step,
             "history": history}  # fmt: skip
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def pretrain(
    tokens: np.ndarray,
    config: LlamaConfig,
    plan: Plan,
    folder: Path,
    seed: int = 42,
    resume: bool = True,
    say=print,
    start: dict[str, torch.Tensor] | None = None,
) -> tuple[LlamaForCausalLM, list[dict]]:
    """The trained model and its history [{step, loss, tokens, seconds}].

    tokens: one long array of token ids, read once from the front; each step takes the next rows x row_length of them,
    so a resumed run reads on where it stopped. A checkpoint lies in `folder`/checkpoint.pt; one of another plan,
    seed or text is not taken up. `start` are the weights to begin with; without them they are drawn.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    if start is not None:
        model.load_state_dict(start)
    opts = optimisers(model, plan)
    checkpoint, first, history = folder / "checkpoint.pt", 0, []
    settings = json.dumps([asdict(plan) | {"report_every": None}, config.to_dict(), seed], sort_keys=True, default=str)
    build = hashlib.sha256(settings.encode() + tokens.tobytes()).hexdigest()
    state = torch.load(checkpoint, weights_only=False) if resume and checkpoint.exists() else {}
    if state.get("build") == build:
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(opts, state["opts"], strict=True):
            optimiser.load_state_dict(saved)
        first, history = state["step"], state["history"]
        say(f"resumed at step {first}")
    spent = history[-1]["seconds"] if history else 0.0
    began, recent = time.monotonic() - spent, []
    model.train()
    for step in range(first, plan.steps):
        read = step * plan.tokens_per_step
        chunk = tokens[read : read + plan.tokens_per_step].astype(np.int64)
        batch = torch.from_numpy(chunk).view(plan.rows, plan.row_length)
        for optimiser in opts:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * plan.rate(step)
        opts[0].param_groups[0]["weight_decay"] = plan.weight_decay[step >= plan.first_steps]
        with rounded_weights(model) if step >= plan.steps * (1 - plan.rounded_share) else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
                logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.size(-1)), batch[:, 1:].reshape(-1))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in opts:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % plan.report_every == 0 or step + 1 == plan.steps:
            seconds = time.monotonic() - began
            history.append({"step": step + 1, "loss": float(np.mean(recent)), "tokens": read + plan.tokens_per_step,
                            "seconds": round(seconds, 1)})  # fmt: skip
            recent = []
            left = seconds / (step + 1) * (plan.steps - step - 1)
            say(json.dumps(history[-1]) + f" eta {left / 60:.1f} min")
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            _save(checkpoint, build, model, opts, step + 1, history)
    return model, history
