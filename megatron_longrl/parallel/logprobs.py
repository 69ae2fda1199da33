"""Log-probabilities, entropies and divergences at chosen tokens over a vocabulary split across TP.

Only the positions that are asked for are projected to the vocabulary, in chunks that bound memory;
the backward pass computes each chunk's logits again instead of keeping them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_longrl.parallel.sums import all_reduce_sum


def _chunk_logits(hidden: Tensor, weight: Tensor, real_rows: int, temperature: float) -> Tensor:
    """float32 logits [t, v / TP] of a chunk; the vocabulary's padding rows can never be chosen."""
    logits = torch.matmul(hidden, weight.t()).float()
    if temperature != 1.0:
        logits = logits / temperature
    if real_rows < logits.shape[1]:
        logits[:, real_rows:] = torch.finfo(torch.float32).min
    return logits


@dataclass(frozen=True)
class ReferenceLogits:
    """The reference's hidden states and weight, from which its logits at the same positions
    follow."""

    hidden: Tensor
    """[t, h] final hidden states."""
    weight: Tensor
    """[v / TP, h], this rank's rows of the output projection."""


class _SelectedLogProbs(torch.autograd.Function):
    """Forward and backward of log softmax at the targets, of the entropy, and of the divergence
    from a reference, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        reference: ReferenceLogits | None,
        group: ProcessGroup,
        vocab_size: int,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        first_row = group.rank() * weight.shape[0]
        real_rows = min(max(vocab_size - first_row, 0), weight.shape[0])
        log_z = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        chosen, expected = torch.zeros_like(log_z), torch.zeros_like(log_z)
        divergence, ref_log_z = torch.zeros_like(log_z), torch.zeros_like(log_z)
        for part in torch.arange(hidden.shape[0], device=hidden.device).split(chunk):
            logits = _chunk_logits(hidden[part], weight, real_rows, temperature)
            largest = _largest(logits, group)
            weights = (logits - largest[:, None]).exp()
            local = targets[part] - first_row
            is_local = (local >= 0) & (local < real_rows)
            picked = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            # Sum of weights, of weighted logits, and the target's logit: one reduction for three.
            sums = [
                weights.sum(dim=1),
                (weights * logits).sum(dim=1),
                torch.where(is_local, picked, torch.zeros_like(picked)),
            ]
            if reference is not None:
                ref_logits = _chunk_logits(
                    reference.hidden[part], reference.weight, real_rows, temperature
                )
                ref_largest = _largest(ref_logits, group)
                sums += [
                    (ref_logits - ref_largest[:, None]).exp().sum(dim=1),
                    (weights * ref_logits).sum(dim=1),
                ]
            total, weighted, target_logit, *ref = all_reduce_sum(torch.stack(sums), group)
            log_z[part] = total.log() + largest
            chosen[part] = target_logit
            expected[part] = weighted / total
            if reference is not None:
                ref_log_z[part] = ref[0].log() + ref_largest
                divergence[part] = (weighted - ref[1]) / total - log_z[part] + ref_log_z[part]
        logprobs, entropy = chosen - log_z, log_z - expected
        ctx.save_for_backward(hidden, weight, targets, log_z, entropy, divergence, ref_log_z)
        ctx.first_row, ctx.real_rows = first_row, real_rows
        ctx.temperature, ctx.chunk, ctx.reference = temperature, chunk, reference
        return logprobs, entropy, divergence

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor, grad_divergence: Tensor
    ) -> tuple[Any, ...]:
        hidden, weight, targets, log_z, entropy, divergence, ref_log_z = ctx.saved_tensors
        reference: ReferenceLogits | None = ctx.reference
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for part in torch.arange(hidden.shape[0], device=hidden.device).split(ctx.chunk):
            logits = _chunk_logits(hidden[part], weight, ctx.real_rows, ctx.temperature)
            log_p = logits - log_z[part, None]
            p = log_p.exp()
            # d logprob / d logit = onehot - p;  d entropy / d logit = -p (log p + entropy)
            factor = -grad_logprobs[part, None] - grad_entropy[part, None] * (
                log_p + entropy[part, None]
            )
            if reference is not None:
                # d divergence / d logit = p (log p - log q - divergence)
                log_q = (
                    _chunk_logits(
                        reference.hidden[part], reference.weight, ctx.real_rows, ctx.temperature
                    )
                    - ref_log_z[part, None]
                )
                factor += grad_divergence[part, None] * (log_p - log_q - divergence[part, None])
            grad_logits = torch.where(p > 0, p * factor, torch.zeros_like(p))
            local = targets[part] - ctx.first_row
            is_local = (local >= 0) & (local < ctx.real_rows)
            grad_logits.scatter_add_(
                1,
                local.clamp(0, weight.shape[0] - 1)[:, None],
                (grad_logprobs[part] * is_local)[:, None],
            )
            grad_logits = (grad_logits / ctx.temperature).to(hidden.dtype)
            grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight += (grad_logits.t() @ hidden[part]).float()
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _largest(logits: Tensor, group: ProcessGroup) -> Tensor:
    """[t]: over the whole vocabulary."""
    largest = logits.amax(dim=1)
    if group.size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return largest


def selected_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    group: ProcessGroup,
    vocab_size: int,
    temperature: float = 1.0,
    chunk: int = 4096,
    reference: ReferenceLogits | None = None,
) -> tuple[Tensor, ...]:
    """Log-probabilities of targets, entropies of their distributions, divergences from a reference.

    The gradient of ``hidden`` is this TP rank's part; the caller sums it over TP (see
    :func:`megatron_longrl.models.language.hidden_for_logits`).

    Args:
        hidden: [t, h] final hidden states of the chosen positions.
        weight: [v / TP, h], this rank's rows of the output projection.
        targets: int64 [t] token ids.
        group: tensor-parallel group.
        vocab_size: rows of the projection that are tokens; the rest is padding.
        temperature: sampling temperature that the logits are divided by.
        chunk: positions projected at a time.
        reference: another model's logits, without a gradient.

    Returns:
        float32 (log-probabilities [t], entropies [t] in nats) and, with a reference, KL(model ||
        reference) [t] in nats, summed over the vocabulary.
    """
    results: tuple[Tensor, ...] = _SelectedLogProbs.apply(
        hidden, weight, targets, reference, group, vocab_size, temperature, chunk
    )
    return results if reference is not None else results[:2]
