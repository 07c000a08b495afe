"""Solutions to lesson 03's exercises."""

from math import sqrt

from anita_utils.exercises import check


def lora_size(shapes, r):
    # B is rows × r, A is r × columns
    return sum(r * (rows + columns) for rows, columns in shapes)


check("lora_size", lora_size)


def lora_scale(alpha, r, rank_stabilised):
    return alpha / (sqrt(r) if rank_stabilised else r)


check("lora_scale", lora_scale)


def nf4_round(weights, levels):
    scale = max(abs(weight) for weight in weights)
    rounded = []
    for weight in weights:
        distances = [abs(weight / scale - level) for level in levels]
        nearest = levels[distances.index(min(distances))]
        rounded.append(scale * nearest)
    return rounded


check("nf4_round", nf4_round)


def merge_lora(W, A, B, alpha):
    r = A.shape[0]
    return W + alpha / r * B @ A


check("merge_lora", merge_lora)


def nf4_bytes(matrices, others):
    codes = matrices / 2  # two weights share a byte
    scales = matrices / 64  # a byte for each block
    scales_of_scales = 4 * matrices / (64 * 256)
    return codes + scales + scales_of_scales + 2 * others


check("nf4_bytes", nf4_bytes)
