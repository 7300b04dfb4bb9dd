"""The method once more, written from docs/method.md alone: slow, batch 1, no KV cache, attention by explicit softmax.

Used by tests/parity to check lrkit/model. Every latent step runs the whole sequence so far from the beginning;
refinement attention is computed over the routed tokens of all chunks at once; top-k is Python's sort. Nothing is
imported from lrkit.model but the settings: weights are read by name from the transformers module's state dict (LoRA
added in), and the vision tower is the transformers module itself, called on one image at a time.

Legend: S tokens of the whole sequence so far, D hidden width, H heads, d head width, V visual tokens of the prompt.
"""

import math

import torch
from torch import Tensor

from tests.parity.reference_layers import ReferenceLayers
from tests.parity.reference_parts import Chunk, Thought, Told


class Reference(ReferenceLayers):
    """Recomputes one sample of a Qwen2-VL with latent steps."""

    # ---- prompt -----------------------------------------------------------------------------------------------------

    def encode(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return self.tower(patches, grid_thw=torch.tensor([grid])).pooler_output

    def widened(self, embeds_SD: Tensor) -> Tensor:
        """Rows of tokens that add nothing behind deeper layers."""
        row = torch.zeros(len(embeds_SD), self.embedding.shape[1] * (1 + len(self.deep)), dtype=embeds_SD.dtype)
        row[:, : embeds_SD.shape[1]] = embeds_SD
        return row

    def prompt(
        self, ids: list[int], grids: tuple[tuple[int, int, int], ...], pixels: Tensor | None
    ) -> tuple[Chunk, list[int]]:
        """The prompt chunk and the columns of its visual tokens."""
        merge = self.vision.spatial_merge_size
        embeds = self.widened(self.embedding[torch.tensor(ids)].clone())
        positions: list[tuple[int, int, int]] = []
        visual = [column for column, token in enumerate(ids) if token == self.image_id]
        if pixels is not None:
            parts = pixels.split([t * h * w for t, h, w in grids])
            tokens = torch.cat([self.encode(part, grid) for part, grid in zip(parts, grids, strict=True)])
            embeds[visual] = torch.cat([tokens, *(tokens @ matrix for matrix in self.deep.values())], dim=1)
        column, image, following = 0, 0, 0
        while column < len(ids):
            if ids[column] != self.image_id:
                positions.append((following,) * 3)
                column, following = column + 1, following + 1
                continue
            _, height, width = grids[image]
            for row in range(height // merge):
                for col in range(width // merge):
                    positions.append((following, following + row, following + col))
            column = len(positions)
            following = max(max(p) for p in positions) + 1
            image += 1
        return Chunk(embeds, positions, True, tuple(visual)), visual

    # ---- thinking ---------------------------------------------------------------------------------------------------

    def as_input(self, hidden_D: Tensor) -> Tensor:
        scale = self.settings.think.latent_scale
        if scale == "none":
            return hidden_D
        if scale == "learned":
            return hidden_D * self.extra["latent.scale"]
        lengths = [float(row.norm()) for row in self.embedding]
        return hidden_D * (sum(lengths) / len(lengths)) / hidden_D.norm()

    def replay(
        self, scores_V: Tensor, visited: set[int], embeds_VD: Tensor
    ) -> tuple[list[int], list[Tensor], Tensor | None]:
        """Section 3: which visual tokens come back, their weights, and the rows that are fed."""
        settings, score = self.settings.replay, scores_V.tolist()
        free = [i for i in range(len(score)) if i not in visited]
        chosen = sorted(sorted(free, key=lambda i: -score[i])[: settings.num_tokens])
        if not chosen:
            return [], [], None
        selected = [scores_V[i] for i in chosen]
        total, mean = sum(s.exp() for s in selected), sum(selected) / len(selected)
        weights = {
            "softmax": [s.exp() / total for s in selected],
            "relative": [s / mean for s in selected],
            "none": [torch.ones_like(s) for s in selected],
        }[settings.weighting]
        seen = [self.window(i) if settings.source == "fine" else embeds_VD[i][None] for i in chosen]
        rows = torch.cat([w * tokens for w, tokens in zip(weights, seen, strict=True)])
        if settings.formation == "soft_mix":
            # One token of one token's size: the weights sum to 1 by eq. 6; for the others the sum is divided out.
            rows = (rows.sum(0) / sum(w * len(tokens) for w, tokens in zip(weights, seen, strict=True)))[None]
        return chosen, weights, rows

    def window(self, index: int) -> Tensor:
        """What one visual token covers in the full picture, read as a picture of its own: (tokens, E)."""
        side = self.settings.replay.zoom * self.vision.spatial_merge_size
        tokens = self.encode(self.windows[index], (1, side, side))
        return torch.cat([tokens, *(tokens @ matrix for matrix in self.deep.values())], dim=1)

    def think(self, chunks: list[Chunk], visual: list[int], visited: set[int]) -> Thought:
        """One latent step; appends its chunk."""
        thought = self.look(chunks, visual, visited)
        own = thought.latent_D
        if self.settings.think.latents == "pause":
            own = self.extra["latent.constant_TD"][len(chunks) - 1]
        self.append(chunks, self.behind(thought.rows_KD, [self.as_input(own)]), routed=True, latents=1)
        return thought

    def look(self, chunks: list[Chunk], visual: list[int], visited: set[int]) -> Thought:
        """What a latent step starts from; nothing is appended."""
        run = self.run(chunks)
        scores = run.saliency_S[visual]
        found = self.replay(scores, visited, chunks[0].embeds_SD[visual])
        visited.update(found[0])
        return Thought(run.normed_SD[-1], scores, *found)

    def think_at_once(self, chunks: list[Chunk], visual: list[int], count: int) -> list[Thought]:
        """All latents in one chunk, run `passes` times (section 9)."""
        if count == 0:
            return []
        thought = self.look(chunks, visual, set())
        trial, before = chunks, [thought.latent_D, *self.extra["latent.constant_TD"][1:count]]
        for number in range(self.settings.think.passes):
            if number:
                before = [thought.latent_D, *self.run(trial).normed_SD[-count:-1]]
            trial, fed = [*chunks], [self.as_input(one) for one in before]
            self.append(trial, self.behind(thought.rows_KD, fed), routed=True, latents=count)
        chunks.append(trial[-1])
        return [thought]

    def behind(self, rows: Tensor | None, latents: list[Tensor]) -> Tensor:
        """Latents behind what is replayed."""
        own = self.widened(torch.stack(latents))
        return own if rows is None else torch.cat([rows, own])

    def append(self, chunks: list[Chunk], embeds_SD: Tensor, routed: bool, latents: int = 0) -> None:
        """A chunk that ends with so many latents; where positions are shared, those before take that of the first."""
        after = max(max(place) for chunk in chunks for place in chunk.positions_S3) + 1
        before = len(embeds_SD) - latents if latents and self.settings.replay.positions == "shared" else 0
        places = [(after + max(0, i - before),) * 3 for i in range(len(embeds_SD))]
        chunks.append(Chunk(embeds_SD, places, routed))

    def tell(self, ids, grids, pixels, num_latents: int, speech: list[int]) -> Told:
        """Teacher forcing: `num_latents` latent steps, then `speech`, whose last token is never read."""
        prompt, visual = self.prompt(ids, grids, pixels)
        chunks, visited = [prompt], set()
        if self.settings.think.latents == "parallel":
            thoughts = self.think_at_once(chunks, visual, num_latents)
        else:
            thoughts = [self.think(chunks, visual, visited) for _ in range(num_latents)]
        before = sum(len(chunk.embeds_SD) for chunk in chunks)
        if len(speech) > 1:
            self.append(chunks, self.embedding[torch.tensor(speech[:-1])], routed=False)
        run = self.run(chunks)
        return Told(
            thoughts,
            [self.logits(thought.latent_D) for thought in thoughts],
            self.logits(run.normed_SD[before - 1 :]),
            run,
            len(prompt.embeds_SD),
            [chunk.embeds_SD for chunk in chunks],
        )

    def answer(
        self, ids, grids, pixels, max_new_tokens: int, eos_id: int, thinks: bool = True
    ) -> tuple[list[int], int]:
        """Greedy: (spoken tokens without the end token, latent steps)."""
        prompt, visual = self.prompt(ids, grids, pixels)
        chunks, visited, latents = [prompt], set(), 0
        think = self.settings.think
        if thinks and think.latents == "parallel":
            self.think_at_once(chunks, visual, latents := think.max_latent_steps)
        while thinks and latents < think.max_latent_steps:
            wants = int(self.logits(self.run(chunks).normed_SD[-1]).argmax()) == self.latent_id
            if think.halting == "adaptive" and not wants:
                break
            self.think(chunks, visual, visited)
            latents += 1
        spoken: list[int] = []
        while len(spoken) < max_new_tokens:
            logits = self.logits(self.run(chunks).normed_SD[-1])
            logits[self.latent_id] = -math.inf
            token = int(logits.argmax())
            if token == eos_id:
                break
            spoken.append(token)
            self.append(chunks, self.embedding[token][None], routed=False)
        return spoken, latents
