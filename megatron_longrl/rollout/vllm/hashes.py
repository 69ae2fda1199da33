"""Hashes of embedded prompts, by which vLLM's prefix cache identifies blocks: once a prompt.

vLLM keeps them with a request, and every response is a separate request: the embeddings of an hour
of video, gigabytes, would be read again for each of them.
"""

from __future__ import annotations

from typing import Any

from torch.utils.weak import WeakTensorKeyDictionary

_HASHES: Any = WeakTensorKeyDictionary()
"""Embeddings of a prompt -> hashes of their blocks, for as long as a request has them."""


def hash_prompts_once() -> None:
    """Let requests that have the same tensor share its hashes (vllm/v1/core/kv_cache_utils.py)."""
    from vllm.v1.core import kv_cache_utils

    compute = kv_cache_utils._gen_prompt_embeds_extra_hash_keys
    if getattr(compute, "shares_hashes", False):
        return

    def look_up(request: Any, start: int, end: int) -> list[tuple[str, bytes]]:
        if request.prompt_embeds is not None:
            known = request._prompt_embeds_per_block_hashes
            request._prompt_embeds_per_block_hashes = _HASHES.setdefault(
                request.prompt_embeds, known
            )
        return compute(request, start, end)

    look_up.shares_hashes = True  # type: ignore[attr-defined]
    kv_cache_utils._gen_prompt_embeds_extra_hash_keys = look_up
