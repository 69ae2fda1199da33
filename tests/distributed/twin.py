"""The slow, obvious twin of the trainer: Hugging Face modules in plain torch, on one process.

Every response is a sequence of its own, every sequence encodes its video again, nothing is sharded,
packed or kept. Losses and gradients of every layout must equal the twin's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from megatron_longrl.config import Config
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.media.modalities.visual.spec import VisualSpec
from megatron_longrl.models.family import HfExport
from megatron_longrl.models.vila.hf_config import hf_configs
from tests.visual_media import visual


class Twin:
    """VILA from Hugging Face's parts.

    Args:
        weights: tensors by an export's names (``llm/…``, ``vision_tower/…``, ``mm_projector/…``).
    """

    def __init__(self, config: Config, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        settings = hf_configs(config, HfExport("float32"))
        self.llm = Qwen2ForCausalLM(Qwen2Config(**settings["llm/config.json"])).float()
        tower = {**settings["vision_tower/config.json"]}
        self.tower = SiglipVisionModel(SiglipVisionConfig(**tower)).float()
        self.weights = {name: tensor.clone().float() for name, tensor in weights.items()}
        self._load(self.llm, "llm/")
        self._load(self.tower, "vision_tower/")
        self.projector = {
            name: self.weights[f"mm_projector/layers.{name}"].requires_grad_()
            for name in ("1.weight", "1.bias", "2.weight", "2.bias", "4.weight", "4.bias")
        }

    def _load(self, module: torch.nn.Module, prefix: str) -> None:
        own = dict(module.named_parameters())
        given = {
            _alias(name.removeprefix(prefix), own): tensor
            for name, tensor in self.weights.items()
            if name.startswith(prefix)
        }
        assert set(given) <= set(own), set(given) - set(own)
        with torch.no_grad():
            for name, tensor in given.items():
                own[name].copy_(tensor)

    def media(self, spec: VisualSpec) -> Tensor:
        """Embeddings of a video or image, [tokens, h]."""
        return self.project(self.features(spec.frames())).flatten(0, 1)

    def features(self, pixels: Tensor) -> Tensor:
        """[f, 3, S, S] -> [f, g, g, c]."""
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        features = states[self.config.value("vision_feature_layer")]
        grid = int(features.shape[1] ** 0.5)
        return features.unflatten(1, (grid, grid))

    def project(self, rows: Tensor) -> Tensor:
        """[f, g, g, c] -> [f, tokens, h], as VILA's mlp_downsample does it, or its _2x2_fix."""
        f, grid, _, channels = rows.shape
        if grid % 2:
            rows = torch.cat([rows, rows.new_zeros(f, 1, grid, channels)], dim=1)
            rows = torch.cat([rows, rows.new_zeros(f, grid + 1, 1, channels)], dim=2)
        cells = []
        starts = range(0, rows.shape[1], 2)
        by_columns = self.config.value("projector_type") == "mlp_downsample"
        for outer in starts:
            for inner in starts:
                i, j = (inner, outer) if by_columns else (outer, inner)
                corners = [rows[:, i + r, j + c] for r in (0, 1) for c in (0, 1)]
                cells.append(torch.cat(corners, dim=-1))
        x, p = torch.stack(cells, dim=1), self.projector
        x = F.layer_norm(x, x.shape[-1:], p["1.weight"], p["1.bias"])
        x = F.gelu(F.linear(x, p["2.weight"], p["2.bias"]))
        return F.linear(x, p["4.weight"], p["4.bias"])

    def states(self, prompt: Prompt, response: Sequence[int]) -> Tensor:
        """[R, h] final hidden states, each before a token of one response; with a graph."""
        ids = torch.cat([prompt.token_ids, torch.tensor(response)])
        embeddings = self.llm.get_input_embeddings()(ids)
        if prompt.media:
            media = [self.media(spec) for spec in visual(prompt)]
            mask = torch.cat([prompt.media_mask, torch.zeros(len(response), dtype=torch.bool)])
            embeddings = embeddings.masked_scatter(mask[:, None], torch.cat(media))
        states = self.llm.model(inputs_embeds=embeddings[None]).last_hidden_state[0]
        return states[len(prompt.token_ids) - 1 : -1]

    def distributions(
        self, prompt: Prompt, response: Sequence[int], temperature: float = 1.0
    ) -> Tensor:
        """[R, v] log-probabilities of the whole vocabulary before each token, with a graph."""
        logits = self.llm.lm_head(self.states(prompt, response))
        return (logits / temperature).log_softmax(-1)

    def logprobs(self, prompt: Prompt, response: Sequence[int], temperature: float = 1.0) -> Tensor:
        """[R] log-probabilities of one response, with a graph."""
        return taken(self.distributions(prompt, response, temperature), response)

    def values(self, prompt: Prompt, response: Sequence[int], head: Tensor) -> Tensor:
        """[R] of a critic with a linear head [h], before each token; with a graph."""
        return self.states(prompt, response) @ head

    def gradients(self) -> dict[str, Tensor]:
        """By the names of an export, of all tensors that have one."""
        found = {f"llm/{n}": p.grad for n, p in self.llm.named_parameters()}
        tower = dict(self.tower.named_parameters())
        for name in self.weights:
            if name.startswith("vision_tower/"):
                found[name] = tower[_alias(name.removeprefix("vision_tower/"), tower)].grad
        found |= {f"mm_projector/layers.{n}": t.grad for n, t in self.projector.items()}
        return {name: grad for name, grad in found.items() if grad is not None}


def taken(distributions: Tensor, response: Sequence[int]) -> Tensor:
    """[R]: the entries of the response's tokens in [R, v]."""
    return distributions.gather(1, torch.tensor(response)[:, None])[:, 0]


def _alias(name: str, own: Mapping[str, object]) -> str:
    """The name inside the module; newer transformers drop SigLIP's ``vision_model.``."""
    return name if name in own else name.removeprefix("vision_model.")
