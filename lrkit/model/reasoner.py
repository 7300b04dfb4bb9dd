"""The latent reasoner: prefill, think, speak; teacher-forced training (method sections 1 to 6).

    prompt --prefill--> state --think (once per latent step)--> state --speak--> logits

Place in the pipeline: train/loop.py calls `forward`; generate.py drives `prefill`, `think` and `speak_logits` for
answers.

Legend: B batch, P prompt tokens, S spoken tokens, T latent steps, V visual tokens, K replayed tokens, D width, W
vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrkit.model.backbones.protocol import Backbone
from lrkit.model.decoder import Prompts, Routing, prefill, run_chunk, visual_saliency
from lrkit.model.distill import Teacher, TokenSR, distillation_loss
from lrkit.model.latent_token import LatentToken
from lrkit.model.lora import Adapter
from lrkit.model.replay import Replay, replay
from lrkit.model.routing import RoutedLayer
from lrkit.model.saliency import SaliencyRow
from lrkit.model.settings import ReasonerSettings
from lrkit.model.state import Sequences


class Supervised(Prompts, Protocol):
    """A training batch (lrkit/data/collate.py: TrainBatch)."""

    num_latents: Tensor
    may_think: Tensor
    speech_ids: Tensor
    speech_mask: Tensor
    speech_weights: Tensor


@dataclass(frozen=True)
class ReasonerLoss:
    """Losses of one batch (eq. 13 and 14)."""

    total: Tensor
    """speech + lambda * distill."""
    speech: Tensor
    """Weighted mean cross entropy over spoken tokens and `<|latent|>` decisions."""
    distill: Tensor
    """L_SCF: mean over samples of the mean over their latent steps; 0 when it is off."""
    right_tokens: Tensor
    """Targets predicted right (a count)."""
    num_tokens: Tensor
    """Targets."""


class LatentReasoner(nn.Module):
    """A backbone with latent steps, visual replay, routing and the training objective around it."""

    def __init__(
        self,
        backbone: Backbone,
        settings: ReasonerSettings,
        latent_id: int,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.settings = settings
        self.adapter = adapter
        self.model = backbone.model
        width = backbone.hidden_size
        rows = backbone.embedding_rows()
        head_rows = None if backbone.tied_embeddings else backbone.head_rows()
        self.latent = LatentToken(latent_id, rows, head_rows, settings.think.latent_scale)
        layers = settings.routing.chosen_layers(backbone.num_layers)
        self.routers = nn.ModuleDict(
            {str(i): RoutedLayer(settings.routing, i, backbone.num_layers, width) for i in layers}
        )
        self.token_sr = TokenSR(settings.distill.head, width) if settings.distill.weight > 0 else None
        self.to(rows.device)

    @property
    def routing(self) -> Routing:
        """Layer -> router, for prompt and latent chunks."""
        return {int(layer): module for layer, module in self.routers.items() if isinstance(module, RoutedLayer)}

    def extra_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained and saved beside LoRA: routers, step encodings, TokenSR, latent rows, latent scale."""
        return {n: p for n, p in self.named_parameters() if not n.startswith("model.")}

    def merge_adapter(self) -> None:
        """Adds LoRA into the backbone's weights, for good: faster, equal up to rounding, and no more training."""
        if self.adapter is not None:
            self.adapter.merge()
            self.adapter = None

    def prefill(self, prompts: Prompts) -> Sequences:
        """Reads the prompts. See decoder.prefill."""
        wants = self.settings.replay.num_tokens > 0
        return prefill(self.backbone, self.routing, prompts, wants)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., W) with the `<|latent|>` column from its own trained row."""
        return self.latent.logits(self.backbone.head(hidden), hidden)

    def think(self, state: Sequences, active_B: Tensor) -> Replay | None:
        """One latent step for the samples where `active_B` is True; the others are not touched. Updates `state`.

        Returns what was replayed (None without images or with replay off).
        """
        latent_BD = self.latent.as_input(state.last_hidden_BD)
        replayed = self._replay(state, active_B)
        embeds, valid = latent_BD[:, None], active_B[:, None]
        if replayed is not None:
            embeds = torch.cat([replayed.tokens_BKD, embeds], dim=1)
            valid = torch.cat([replayed.valid_BK & valid, valid], dim=1)
        row = None if state.saliency_BV is None else SaliencyRow()
        hidden = run_chunk(
            self.backbone,
            self.routing,
            state,
            embeds,
            valid,
            self._latent_positions(state, valid),
            row,
        )
        keep = active_B[:, None]
        state.last_hidden_BD = torch.where(keep, hidden[:, -1], state.last_hidden_BD)
        if row is not None and state.visual is not None and state.saliency_BV is not None:
            state.saliency_BV = torch.where(keep, visual_saliency(row, state.visual), state.saliency_BV)
        state.latent_steps_B = state.latent_steps_B + active_B
        return replayed

    def speak(self, state: Sequences, ids_BS: Tensor, valid_BS: Tensor) -> Tensor:
        """Appends spoken tokens (no routing) and returns their hidden states (B, S, D). Updates `state`.

        `last_hidden_BD` becomes that of each sample's last real token in the chunk, where it has one.
        """
        embeds = self.backbone.embed_tokens(ids_BS)
        hidden = run_chunk(self.backbone, {}, state, embeds, valid_BS, self._positions(state, valid_BS))
        columns = torch.arange(ids_BS.shape[1], device=ids_BS.device)
        last_B = torch.where(valid_BS, columns, -1).amax(1)
        rows = torch.arange(len(last_B), device=last_B.device)
        state.last_hidden_BD = torch.where((last_B >= 0)[:, None], hidden[rows, last_B], state.last_hidden_BD)
        return hidden

    def forward(self, batch: Supervised) -> ReasonerLoss:
        """Teacher-forced loss: `num_latents` latent steps per sample, then all spoken tokens at once."""
        state = self.prefill(batch)
        decisions: list[tuple[Tensor, Tensor]] = []
        distilled: list[tuple[Tensor, Tensor]] = []
        teacher = self._teacher(batch)
        for step in range(int(batch.num_latents.max())):
            active_B = batch.num_latents > step
            decisions.append((state.last_hidden_BD, active_B))
            replayed = self.think(state, active_B)
            if teacher is not None and replayed is not None:
                distilled.append(self._distill(teacher, replayed))
        hidden_BSD = state.last_hidden_BD[:, None]
        if batch.speech_ids.shape[1] > 1:
            spoken_BSD = self.speak(state, batch.speech_ids[:, :-1], batch.speech_mask[:, :-1])
            hidden_BSD = torch.cat([hidden_BSD, spoken_BSD], dim=1)
        return self._loss(batch, hidden_BSD, decisions, distilled)

    def _replay(self, state: Sequences, active_B: Tensor) -> Replay | None:
        if self.settings.replay.num_tokens == 0 or state.visual is None:
            return None
        assert state.saliency_BV is not None and state.visited_BV is not None
        found = replay(
            self.settings.replay,
            state.saliency_BV,
            state.visual.embeds_BVD,
            ~state.visited_BV & active_B[:, None],
            state.replay_slots,
        )
        state.visited_BV = state.visited_BV | found.selected_BV
        state.replays.append(found)
        return found

    def _positions(self, state: Sequences, valid_BS: Tensor) -> Tensor:
        """(3, B, S): real tokens count on from the largest position so far, equal in all sections. Updates `state`."""
        position_BS = state.next_position_B[:, None] + valid_BS.long().cumsum(1) - 1
        state.next_position_B = state.next_position_B + valid_BS.sum(1)
        return position_BS.clamp_min(0)[None].expand(3, -1, -1)

    def _latent_positions(self, state: Sequences, valid_BS: Tensor) -> Tensor:
        """Positions (3, B, S) of replayed tokens and latent; `shared` gives all the latent's. Updates `state`."""
        if self.settings.replay.positions == "consecutive":
            return self._positions(state, valid_BS)
        position_3B1 = self._positions(state, valid_BS[:, -1:])
        return position_3B1.expand(-1, -1, valid_BS.shape[1])

    def _teacher(self, batch: Supervised) -> Teacher | None:
        if self.token_sr is None or batch.pixel_values is None or batch.image_grid_thw is None:
            return None
        grids, counts = batch.image_grid_thw, batch.images_per_sample
        return Teacher(
            self.backbone,
            batch.pixel_values,
            grids,
            counts,
            self.settings.distill.window,
        )

    def _distill(self, teacher: Teacher, replayed: Replay) -> tuple[Tensor, Tensor]:
        """L_rec of this latent step per sample, and which samples have one: those that replayed something."""
        assert self.token_sr is not None
        reference, samples = teacher.features(replayed.selected_BV)
        return distillation_loss(self.token_sr, replayed, reference, samples)

    def _loss(
        self,
        batch: Supervised,
        hidden_BSD: Tensor,
        decisions: list[tuple[Tensor, Tensor]],
        distilled: list[tuple[Tensor, Tensor]],
    ) -> ReasonerLoss:
        """Cross entropy on speech and on `<|latent|>` decisions, plus lambda * L_SCF (eq. 13, 14)."""
        logits = self.logits(hidden_BSD).float()
        adaptive = self.settings.think.halting == "adaptive"
        # Only where speech begins may the model still choose to think, and only if it was not asked to speak at once.
        closed_BS = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        closed_BS[:, 0] = ~batch.may_think if adaptive else True
        latent_W = torch.arange(logits.shape[-1], device=logits.device) == self.latent.token_id
        logits = logits.masked_fill(closed_BS[..., None] & latent_W, torch.finfo(logits.dtype).min)
        weights = [(batch.speech_weights * batch.speech_mask).flatten()]
        scores, targets = [logits.flatten(0, 1)], [batch.speech_ids.flatten()]
        if adaptive:
            for hidden_BD, active_B in decisions:
                scores.append(self.logits(hidden_BD).float())
                targets.append(torch.full_like(active_B, self.latent.token_id, dtype=torch.long))
                weights.append(active_B.to(weights[0].dtype))
        score, target, weight = (
            torch.cat(scores),
            torch.cat(targets),
            torch.cat(weights),
        )
        speech = (functional.cross_entropy(score, target, reduction="none") * weight).sum() / weight.sum()
        counted = weight > 0
        right = ((score.detach().argmax(-1) == target) & counted).sum()
        distill = mean_over_steps(distilled, speech)
        total = speech + self.settings.distill.weight * distill
        return ReasonerLoss(total, speech, distill, right, counted.sum())


def mean_over_steps(distilled: list[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """L_SCF (eq. 9): mean over each sample's latent steps, then over the samples that have any."""
    if not distilled:
        return torch.zeros_like(like)
    total_B = torch.stack([loss for loss, _ in distilled]).sum(0)
    count_B = torch.stack([has for _, has in distilled]).sum(0)
    per_sample = total_B / count_B.clamp_min(1)
    return per_sample.sum() / (count_B > 0).sum().clamp_min(1)
