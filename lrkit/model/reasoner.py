"""The latent reasoner: prefill, think, speak; teacher-forced training (method sections 1 to 6).

    prompt --prefill--> state --think (once per latent step)--> state --speak--> logits

Place in the pipeline: train/loop.py calls `forward`; generate.py drives `prefill`, `think` and `speak` for answers.

Legend: B batch, P prompt tokens, S spoken tokens, T latent steps, V visual tokens, K replayed tokens, D width, W
vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ConfigError, UserError
from lrkit.model.backbone import Backbone
from lrkit.model.decoder import Asked, Prompts, Routing, as_rows, prefill, run_chunk, visual_saliency
from lrkit.model.distill import Teacher, TokenSR, distillation_loss
from lrkit.model.latent_token import LatentToken
from lrkit.model.lora import Adapter
from lrkit.model.objective import Distilled, ReasonerLoss, Supervised, loss_counts, objective
from lrkit.model.pointing import Pointed, pointing_loss
from lrkit.model.precision import wide
from lrkit.model.read import Look, look, read
from lrkit.model.replay import FullPictures, Replay, fine_replay, replay, windows_of
from lrkit.model.routing import RoutedLayer
from lrkit.model.saliency import SaliencyRow
from lrkit.model.state import Sequences


class LatentReasoner(nn.Module):
    """A backbone with latent steps, visual replay, routing and the training objective around it."""

    def __init__(
        self,
        backbone: Backbone,
        settings: ReasonerSettings,
        latent_id: int,
        adapter: Adapter | None = None,
    ) -> None:
        """Raises: ConfigError: the backbone has too few layers for `settings.prune`."""
        super().__init__()
        if problem := settings.prune.problem(backbone.num_layers):
            raise ConfigError(problem)
        self.backbone = backbone
        self.settings = settings
        self.adapter = adapter
        self.replaced: tuple[str, ...] = ()
        """Weights of the backbone that its base has otherwise; they are saved beside the adapter."""
        self.model = backbone.model
        width = backbone.hidden_size
        rows = backbone.embedding_rows()
        head_rows = None if backbone.tied_embeddings else backbone.head_rows()
        self.latent = LatentToken(latent_id, rows, head_rows, settings.think)
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

    def prefill(self, prompts: Asked, attend: bool = False) -> Sequences:
        """Reads the prompts at once, as training does. See decoder.prefill. `attend` keeps the saliency row of each
        step, even where nothing is replayed by it."""
        wanted = attend or self._wants_saliency
        return _seen_in_full(prefill(self.backbone, self.routing, prompts, wanted, self.settings.prune), prompts)

    def read(self, prompts: Asked, looks: Sequence[Look] | None = None) -> Sequences:
        """Reads the prompts part after part, as answers do. See read.read. Who prunes reads them at once: what leaves
        the picture part depends on the question."""
        if self.settings.prune.active:
            return self.prefill(prompts)
        return _seen_in_full(read(self.backbone, self.routing, prompts, self._wants_saliency, looks), prompts)

    def look(self, prompts: Prompts) -> Look:
        """Reads the picture part of one prompt. See read.look.

        Raises:
            UserError: visual tokens are pruned by what is asked.
        """
        if self.settings.prune.active:
            raise UserError(
                "this model prunes visual tokens by what is asked (model.prune), so a look cannot serve several "
                "questions; ask about the pictures themselves, or train it without pruning"
            )
        return look(self.backbone, self.routing, prompts)

    @property
    def _wants_saliency(self) -> bool:
        return self.settings.replay.num_tokens > 0

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., W) with the `<|latent|>` column from its own trained row."""
        return self.latent.logits(self.backbone.head(hidden), hidden)

    def think(self, state: Sequences, active_B: Tensor) -> Replay | None:
        """One latent step for the samples where `active_B` is True; the others are not touched. Updates `state`.

        Returns what was replayed (None without images or with replay off).
        """
        latent_BD = self.latent.next_input(state.last_hidden_BD, state.latent_steps_B)
        replayed = self._replay(state, active_B)
        row = None if state.saliency_BV is None else SaliencyRow()
        hidden = self._run_latents(state, replayed, latent_BD[:, None], active_B[:, None], row)
        keep = active_B[:, None]
        state.last_hidden_BD = torch.where(keep, hidden[:, -1], state.last_hidden_BD)
        if row is not None and state.visual is not None and state.saliency_BV is not None:
            state.saliency_BV = torch.where(keep, visual_saliency(row, state.visual, state.pruned), state.saliency_BV)
        state.latent_steps_B = state.latent_steps_B + active_B
        return replayed

    def think_at_once(self, state: Sequences, count_B: Tensor) -> Replay | None:
        """All latents of each sample, `count_B`, behind one replay, in `think.passes` passes. Updates `state`.

        In the first pass every latent but the first is fed its constant; in a further pass, what stands before it has
        become in the pass before (Jacobi iteration, method section 9). Returns as `think`.
        """
        most = int(count_B.max())
        if most == 0:
            return None
        step_BT = torch.arange(most, device=count_B.device).expand(len(count_B), -1)
        first_BD = self.latent.fed_back(state.last_hidden_BD)
        inputs_BTD = torch.cat([first_BD[:, None], self.latent.constants(step_BT[:, 1:], first_BD)], dim=1)
        replayed = self._replay(state, count_B > 0)
        valid_BT = step_BT < count_B[:, None]
        for _ in range(min(self.settings.think.passes, most) - 1):
            hidden_BTD = self._run_latents(state.fork(), replayed, inputs_BTD, valid_BT)
            inputs_BTD = torch.cat([first_BD[:, None], self.latent.fed_back(hidden_BTD[:, :-1])], dim=1)
        hidden_BTD = self._run_latents(state, replayed, inputs_BTD, valid_BT)
        rows = torch.arange(len(count_B), device=count_B.device)
        last_BD = hidden_BTD[rows, count_B.clamp_min(1) - 1]
        state.last_hidden_BD = torch.where((count_B > 0)[:, None], last_BD, state.last_hidden_BD)
        state.latent_steps_B = state.latent_steps_B + count_B
        return replayed

    def _run_latents(
        self,
        state: Sequences,
        replayed: Replay | None,
        inputs_BTD: Tensor,
        valid_BT: Tensor,
        row: SaliencyRow | None = None,
    ) -> Tensor:
        """One chunk of replayed tokens and T latents: the hidden states (B, T, D) of the latents. Updates `state`."""
        count, valid = inputs_BTD.shape[1], valid_BT
        if replayed is not None:
            inputs_BTD = torch.cat([replayed.tokens_BRE, as_rows(inputs_BTD, replayed.tokens_BRE.shape[-1])], dim=1)
            valid = torch.cat([replayed.valid_BR & valid_BT[:, :1], valid_BT], dim=1)
        positions = self._latent_positions(state, valid, count)
        return run_chunk(self.backbone, self.routing, state, inputs_BTD, valid, positions, row)[:, -count:]

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

    def loss_counts(self, batch: Supervised) -> Tensor:
        """What the losses of a batch are means over; see objective.py."""
        return loss_counts(self.settings, batch)

    def forward(self, batch: Supervised, counts: Tensor | None = None) -> ReasonerLoss:
        """Teacher-forced loss: `num_latents` latent steps per sample, then all spoken tokens at once.

        `counts` is the mean of `loss_counts` over the batches of an update, whose losses then have the mean, and the
        mean gradient, of one large batch; None: this batch stands alone.
        """
        state = self.prefill(batch)
        adaptive = self.settings.think.halting == "adaptive"
        decisions: list[tuple[Tensor, Tensor]] = []
        distilled: list[Distilled] = []
        pointed: list[Pointed] = []
        teacher = self._teacher(batch)
        if self.settings.think.latents == "parallel":
            replayed = self.think_at_once(state, batch.num_latents)
            if teacher is not None and replayed is not None:
                distilled.append(self._distill(teacher, replayed))
        for step in self._steps(batch):
            active_B = batch.num_latents > step
            if self.settings.distill.pointing and batch.looks is not None and state.saliency_BV is not None:
                pointed.append(pointing_loss(state.saliency_BV, batch.looks[:, step], active_B))
            if adaptive:
                decisions.append((wide(self.logits(state.last_hidden_BD)), active_B))
            replayed = self.think(state, active_B)
            if teacher is not None and replayed is not None:
                distilled.append(self._distill(teacher, replayed))
        hidden_BSD = state.last_hidden_BD[:, None]
        if batch.speech_ids.shape[1] > 1:
            spoken_BSD = self.speak(state, batch.speech_ids[:, :-1], batch.speech_mask[:, :-1])
            hidden_BSD = torch.cat([hidden_BSD, spoken_BSD], dim=1)
        return objective(
            self.settings,
            batch,
            wide(self.logits(hidden_BSD)),
            decisions,
            distilled,
            self.latent.token_id,
            self.loss_counts(batch) if counts is None else counts,
            pointed,
        )

    def _steps(self, batch: Supervised) -> range:
        """The latent steps that are taken one after the other."""
        return range(0 if self.settings.think.latents == "parallel" else int(batch.num_latents.max()))

    def _replay(self, state: Sequences, active_B: Tensor) -> Replay | None:
        if self.settings.replay.num_tokens == 0 or state.visual is None:
            return None
        assert state.saliency_BV is not None and state.visited_BV is not None
        settings, free_BV = self.settings.replay, ~state.visited_BV & active_B[:, None]
        if settings.source == "fine" and bool(free_BV.any()):  # a tower has nothing to say of no window
            windows = state.visual.windows
            assert windows is not None, "prompts of a fine replay come with windows (Processor.see_for)"
            found = fine_replay(settings, state.saliency_BV, windows, free_BV, self.backbone.encode_images)
        else:
            found = replay(settings, state.saliency_BV, state.visual.rows_BVE, free_BV, state.replay_slots)
        state.visited_BV = state.visited_BV | found.selected_BV
        state.replays.append(found)
        return found

    def _positions(self, state: Sequences, valid_BS: Tensor) -> Tensor:
        """(axes, B, S): real tokens count on from the largest position so far, equal on all axes. Updates `state`."""
        position_BS = state.next_position_B[:, None] + valid_BS.long().cumsum(1) - 1
        state.next_position_B = state.next_position_B + valid_BS.sum(1)
        return position_BS.clamp_min(0)[None].expand(self.backbone.axes, -1, -1)

    def _latent_positions(self, state: Sequences, valid_BS: Tensor, count: int) -> Tensor:
        """Positions (axes, B, S) of replayed tokens and `count` latents; `shared` gives the replayed ones that of the
        first latent. Updates `state`."""
        if self.settings.replay.positions == "consecutive":
            return self._positions(state, valid_BS)
        position_ABT = self._positions(state, valid_BS[:, -count:])
        before = valid_BS.shape[1] - count
        return torch.cat([position_ABT[..., :1].expand(-1, -1, before), position_ABT], dim=2)

    def _teacher(self, batch: Supervised) -> Teacher | None:
        if self.token_sr is None or batch.pixel_values is None or batch.grids is None:
            return None
        return Teacher(
            self.backbone, batch.pixel_values, batch.grids, batch.images_per_sample, self.settings.distill.window
        )

    def _distill(self, teacher: Teacher, replayed: Replay) -> Distilled:
        """L_rec of this latent step per sample, and which samples have one: those that replayed something."""
        assert self.token_sr is not None
        reference, samples = teacher.features(replayed.selected_BV)
        return distillation_loss(self.token_sr, replayed, reference, samples)


def _seen_in_full(state: Sequences, pictures: FullPictures) -> Sequences:
    """A state that has read its prompts, with the windows that a fine replay chooses from."""
    if state.visual is not None:
        state.visual.windows = windows_of(pictures, state.visual.real_BV)
    return state
