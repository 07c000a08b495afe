"""The exercises of lesson 03: LoRA's size and scale, rounding to levels, merging, the bytes of a 4-bit model."""

from __future__ import annotations

from math import sqrt

import numpy as np

from anita_utils.exercises.checking import Exercise

_LAYER_8B = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)]

lora_size = Exercise(
    cases=[
        (([(3, 5)], 2), 16),
        ((_LAYER_8B, 16), 1_310_720),
    ],
    mistakes=[
        (lambda shapes, r: sum(r * m * n for m, n in shapes),
         "You multiplied the widths: that is r times the full matrix. A is r × in and B is out × r; add the two."),
        (lambda shapes, r: sum(r * n for _, n in shapes), "That is A alone (r × in). B has r × out more."),
        (lambda shapes, r: sum(r * m for m, _ in shapes), "That is B alone (out × r). A has r × in more."),
        (lambda shapes, r: sum(m + n for m, n in shapes), "That is for rank 1: times r."),
        (lambda shapes, r: sum(m * n for m, n in shapes),
         "Those are the frozen weights themselves; the adapter is two thin matrices, r × in and out × r."),
    ],
    hint="For each matrix of out × in: A holds r × in numbers, B out × r. Add up both, over all matrices.",
    right="one layer of the 8B at rank 16. Times 32 layers, that is the 41,943,040 counted above.",
)  # fmt: skip

lora_scale = Exercise(
    cases=[
        ((16, 64, True), 2.0),
        ((8, 16, False), 0.5),
        ((32, 16, False), 2.0),
    ],
    mistakes=[
        (lambda alpha, r, stabilised: alpha / r,
         "Both flavours cannot divide by r: the rank-stabilised one divides by its square root."),
        (lambda alpha, r, stabilised: alpha / sqrt(r),
         "Both flavours cannot divide by √r: only the rank-stabilised one does; the plain one divides by r."),
        (lambda alpha, r, stabilised: r / alpha, "Upside down: alpha stands above."),
        (lambda alpha, r, stabilised: alpha / r if stabilised else alpha / sqrt(r),
         "The two are swapped: √r belongs to the rank-stabilised flavour."),
        (lambda alpha, r, stabilised: sqrt(alpha / r) if stabilised else alpha / r, "The root is of r alone: α/√r."),
    ],
    hint="Plain LoRA: alpha / r. Rank-stabilised: alpha / √r.",
    right="the authors' DPO script has 2, their SFT script 0.5: the same update counts four times as much.",
)  # fmt: skip


def _restored(weights, levels, scale=lambda w: max(map(abs, w)), below=False, back=True):
    by = scale(weights)

    def nearest(x):
        return max((v for v in levels if v <= x), default=levels[0]) if below else min(levels, key=lambda v: abs(v - x))

    return [nearest(weight / by) * (by if back else 1) for weight in weights]


_LEVELS = [-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0]

nf4_round = Exercise(
    cases=[
        (([0.8, -0.32, 0.2, -0.04], _LEVELS), [0.8, -0.4, 0.16, 0.0]),
        (([-2.0, 0.6, 1.2, 0.3], _LEVELS), [-2.0, 0.4, 1.0, 0.4]),
    ],
    mistakes=[
        (lambda w, levels: _restored(w, levels, scale=max),
         "The scale is the largest *magnitude*: where the outermost weight is negative, max(weights) misses it."),
        (lambda w, levels: _restored(w, levels, below=True), "You took the level below; take the nearest."),
        (lambda w, levels: _restored(w, levels, back=False),
         "Those are the levels: multiply by the scale, to be back among the weights."),
        (lambda w, levels: _restored(w, levels, scale=lambda _: 1),
         "The weights were not divided by a scale first: levels reach from -1 to 1, weights do not."),
        (lambda w, levels: [levels.index(v) for v in _restored(w, levels, back=False)],
         "Those are the numbers that are stored. What the layer computes with is the level times the scale."),
    ],
    hint="Scale: the largest magnitude. Divide each weight by it, take the level with the smallest distance, "
    "multiply by the scale.",
    right="with the 16 levels of NF4 and blocks of 64, this is what bitsandbytes does.",
)  # fmt: skip

_W, _A, _B = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 2.0]]), np.array([[1.0], [3.0]])
_A2, _B2 = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[2.0, 1.0], [0.0, 1.0]])


def _either_way(A, B):
    return A @ B if A.shape[0] == B.shape[1] == A.shape[1] else float((A @ B)[0, 0])


merge_lora = Exercise(
    cases=[
        ((_W, _A, _B, 2.0), [[3.0, 4.0], [6.0, 13.0]]),
        ((_W, _A2, _B2, 4.0), [[7.0, 2.0], [2.0, 3.0]]),
    ],
    mistakes=[
        (lambda W, A, B, alpha: W + alpha * B @ A,
         "The scale is α/r, and r is not always 1: it is the number of rows of A."),
        (lambda W, A, B, alpha: W + B @ A, "The scale α/r is missing."),
        (lambda W, A, B, alpha: W + alpha / A.shape[1] * B @ A,
         "r is the thin side: A has r rows (A.shape[0]) and as many columns as there are inputs."),
        (lambda W, A, B, alpha: W + alpha / len(A) * _either_way(A, B),
         "A @ B is the other way round: x meets A first, so the update is B @ A. With rank 1 numpy stretches the "
         "single number A @ B over W and gives no error."),
        (lambda W, A, B, alpha: alpha / len(A) * B @ A, "That is the update alone: add it to W."),
        (lambda W, A, B, alpha: W + alpha / sqrt(len(A)) * B @ A,
         "α/√r is the rank-stabilised scale; here it is the plain one, α/r."),
        (lambda W, A, B, alpha: W + alpha / len(A) * (B @ A).T,
         "Your update is transposed: it is B @ A, out × in like W."),
    ],
    hint="W plus α/r times B @ A, where r is the number of rows of A.",
    right="one matrix as before, so the adapter costs nothing once it is merged.",
)  # fmt: skip


def _bytes(matrices, others, block=64, group=256, codes=0.5, first=1, second=4, each_other=2):
    scales = matrices / block
    return codes * matrices + first * scales + second * scales / group + each_other * others


nf4_bytes = Exercise(
    cases=[
        ((65_536, 1_000), 35_808),
        ((6_979_321_856, 1_050_939_392), 5_702_295_552),
    ],
    mistakes=[
        (lambda m, o: _bytes(m, o, first=4, second=0),
         "Four bytes a scale: without double quantisation, right. With it, a scale has one byte, and 256 scales "
         "share four more."),
        (lambda m, o: _bytes(m, o, second=0), "The scales' own scales are missing: 4 bytes for every 256 scales."),
        (lambda m, o: _bytes(m, o, first=0, second=0),
         "The scales are missing: a byte for every 64 weights, and four bytes for every 256 of those."),
        (lambda m, o: _bytes(m, o, each_other=0.5),
         "The others are not quantised: embeddings, norms and head keep 2 bytes each."),
        (lambda m, o: _bytes(m, o, each_other=0),
         "The other weights are missing: embeddings, norms and head are loaded too, in 2 bytes each."),
        (lambda m, o: _bytes(m, o, codes=1), "A whole byte for each 4-bit weight: two of them share one."),
        (lambda m, o: _bytes(m, o, codes=4, first=8, second=32), "You added up bits for the matrices: a byte has 8."),
        (lambda m, o: _bytes(m, o, second=4 * 64),
         "The second scales are shared by 256 *scales*, so by 64 × 256 weights."),
    ],
    hint="Four sums: half a byte a matrix weight; one byte for every 64 of them; four bytes for every 64 × 256; two"
    " bytes for each other weight.",
    right="5.7 GB for the 8B, as the table of memory above shows; a T4 has 16.",
    tolerance=1,
)  # fmt: skip

EXERCISES = {
    "lora_size": lora_size,
    "lora_scale": lora_scale,
    "nf4_round": nf4_round,
    "merge_lora": merge_lora,
    "nf4_bytes": nf4_bytes,
}
