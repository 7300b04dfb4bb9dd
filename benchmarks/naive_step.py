"""The baseline of training_step.py: a training step that does what lrkit's does, the way the released code would.

At every latent step the whole sequence so far is read again from its first token, without a KV cache, by eager
attention that stores every (S, S) map; the saliency row is cut out of those maps. Unlike the released code it is
correct: gradient flows through every latent, routing is chunk by chunk, and loss and gradients equal lrkit's, as
training_step.py checks.

All samples of the batch have the same shape, so that there is no padding to spend time on.

Legend: B batch, S tokens of the whole sequence so far, V visual tokens, A routed tokens, D hidden width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward

from lrkit.model.decoder import embed_prompts, picture_parts, prompt_positions
from lrkit.model.objective import Supervised
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.replay import replay

EAGER = "naive_eager"


class NaiveStep:
    """Computes the training loss of `reasoner` by full recompute."""

    def __init__(self, reasoner: LatentReasoner) -> None:
        self.reasoner = reasoner
        self.layers: nn.ModuleList = reasoner.model.model.language_model.layers
        self.maps: list[Tensor] = []

        def eager(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any):
            options.pop("saliency", None)
            output, probability = eager_attention_forward(module, query, key, value, mask, **options)
            self.maps.append(probability)
            return output, probability

        ALL_ATTENTION_FUNCTIONS.register(EAGER, eager)
        ALL_MASK_ATTENTION_FUNCTIONS.register(EAGER, eager_mask)
        reasoner.model.set_attn_implementation({"text_config": EAGER, "vision_config": "eager"})

    def loss(self, batch: Supervised) -> Tensor:
        """The mean cross entropy of speech and `<|latent|>` decisions."""
        reasoner, backbone = self.reasoner, self.reasoner.backbone
        prompt_BPD, visual = embed_prompts(backbone, batch)
        assert visual is not None and bool(batch.prompt_mask.all())
        positions_3BP, next_B = prompt_positions(backbone, batch)
        # Routing chooses in the picture part and in the question part of a prompt apart.
        end = int(picture_parts(batch, backbone.image_token_id)[0])
        chunks, places = [prompt_BPD[:, :end], prompt_BPD[:, end:]], [positions_3BP]
        free_BV = visual.real_BV
        decisions: list[Tensor] = []
        for _ in range(int(batch.num_latents[0])):
            hidden_BSD, row_BS = self.read(chunks, places, spoken=False)
            decisions.append(hidden_BSD[:, -1])
            scores_BV = row_BS.gather(1, visual.column_BV)
            found = replay(reasoner.settings.replay, scores_BV, visual.rows_BVE, free_BV)
            free_BV = free_BV & ~found.selected_BV
            latent_BD = reasoner.latent.as_input(hidden_BSD[:, -1])
            num_left = int(found.valid_BR[0].sum())  # the last step finds fewer than K, and empty slots stand last
            chunks.append(torch.cat([found.tokens_BRE[:, :num_left], latent_BD[:, None]], dim=1))
            next_B = self.place(places, next_B, chunks[-1].shape[1])
        chunks.append(backbone.embed_tokens(batch.speech_ids[:, :-1]))
        self.place(places, next_B, chunks[-1].shape[1])
        hidden_BSD, _ = self.read(chunks, places, spoken=True)
        return self.cross_entropy(batch, hidden_BSD[:, -batch.speech_ids.shape[1] :], decisions)

    def read(self, chunks: list[Tensor], places: list[Tensor], spoken: bool) -> tuple[Tensor, Tensor]:
        """The whole sequence, layer by layer: normed hidden states (B, S, D) and the last row's saliency (B, S)."""
        reasoner, backbone = self.reasoner, self.reasoner.backbone
        hidden = torch.cat(chunks, dim=1)
        rotary = backbone.rotary(torch.cat(places, dim=2), hidden)
        mask = self.causal(hidden.shape[1])
        sizes = [chunk.shape[1] for chunk in (chunks[:-1] if spoken else chunks)]
        total_BS = torch.zeros(hidden.shape[:2])
        for number, layer in enumerate(self.layers):
            self.maps.clear()
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
            total_BS = total_BS + self.maps[0][:, :, -1].mean(1)
            if number in reasoner.routing:
                hidden = self.refine(number, hidden, rotary, sizes)
        return backbone.final_norm(hidden), total_BS / len(self.layers)

    def refine(self, number: int, hidden_BSD: Tensor, rotary: tuple[Tensor, Tensor], sizes: list[int]) -> Tensor:
        """Section 5 for all chunks at once, depth 1: chosen chunk by chunk, refined in one call."""
        routed = self.reasoner.routing[number]
        index: list[Tensor] = []
        gates: list[Tensor] = []
        start = 0
        for size in sizes:
            part = hidden_BSD[:, start : start + size]
            score, valid = routed.score(part), torch.ones(part.shape[:2], dtype=torch.bool)
            chosen, _ = routed.choose(score, valid)
            gates.append(routed.gate(score, valid).gather(1, chosen))
            index.append(chosen + start)
            start += size
        index_BA = torch.cat(index, dim=1)
        index_BAD = index_BA[..., None].expand(-1, -1, hidden_BSD.shape[-1])
        tokens_BAD = hidden_BSD.gather(1, index_BAD)
        at = tuple(table.gather(1, index_BA[..., None].expand(-1, -1, table.shape[-1])) for table in rotary)
        mask = self.causal(index_BA.shape[1])
        refined_BAD = self.layers[number](tokens_BAD, attention_mask=mask, position_embeddings=at)
        update_BAD = routed.step_encoding_RD[0] * torch.cat(gates, dim=1)[..., None] * refined_BAD
        return hidden_BSD.scatter(1, index_BAD, tokens_BAD + update_BAD)

    def cross_entropy(self, batch: Supervised, hidden_BSD: Tensor, decisions: list[Tensor]) -> Tensor:
        logits = self.reasoner.logits(hidden_BSD)
        latent = self.reasoner.latent.token_id
        closed = torch.zeros_like(logits, dtype=torch.bool)
        closed[:, 1:, latent] = True
        logits = logits.masked_fill(closed, torch.finfo(logits.dtype).min)
        scores = [logits.flatten(0, 1), *(self.reasoner.logits(hidden_BD) for hidden_BD in decisions)]
        thoughts = torch.full((len(hidden_BSD) * len(decisions),), latent)
        return functional.cross_entropy(torch.cat(scores), torch.cat([batch.speech_ids.flatten(), thoughts]))

    @staticmethod
    def place(places: list[Tensor], next_B: Tensor, size: int) -> Tensor:
        places.append((next_B[:, None] + torch.arange(size))[None].expand(3, -1, -1))
        return next_B + size

    @staticmethod
    def causal(size: int) -> Tensor:
        """(1, 1, S, S) additive mask."""
        return torch.full((size, size), torch.finfo(torch.float32).min).triu(1)[None, None]
