"""The layers of the method once more: attention by explicit softmax, routing, saliency. reference.py takes steps.

Legend: S tokens of the whole sequence so far, D hidden width, H heads, d head width, V visual tokens of the prompt.
"""

import math
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from lrkit.contract.settings import ReasonerSettings
from tests.parity.reference_parts import Chunk, Run


class ReferenceLayers:
    """The language model of a Qwen2-VL over a whole sequence of chunks."""

    def __init__(
        self,
        model: torch.nn.Module,
        extra: dict[str, Tensor],
        settings: ReasonerSettings,
        latent_id: int,
        deep: dict[int, Tensor] | None = None,
    ):
        """`extra` holds the names of lrkit.safetensors: routers, step encodings, TokenSR, latent rows and scale. `deep`
        gives by layer the matrix (D, D) that makes of a visual token what it adds behind that layer."""
        self.settings, self.latent_id, self.deep = settings, latent_id, deep or {}
        self.extra = extra
        self.windows: list[Tensor] = []
        """Patches of each window of the sample that is told, where replay is fine."""
        self.text = model.config.text_config
        self.vision = model.config.vision_config
        self.image_id = model.config.image_token_id
        self.tower = model.model.visual
        self.state = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
        self.embedding = self.state["model.language_model.embed_tokens.weight"]

    # ---- weights ----------------------------------------------------------------------------------------------------

    def linear(self, name: str, x: Tensor) -> Tensor:
        """A linear map of the language model with LoRA's update of its matrix added in."""
        name = f"model.language_model.layers.{name}"
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        if f"{name}.lora_A.default.weight" in self.state:
            scale = self.settings.lora.alpha / self.settings.lora.rank
            weight = weight + scale * (
                self.state[f"{name}.lora_B.default.weight"] @ self.state[f"{name}.lora_A.default.weight"]
            )
        return x @ weight.T + (0 if bias is None else bias)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.state[f"model.language_model.{name}.weight"]
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + self.text.rms_norm_eps).sqrt()

    def router(self, layer: int, x: Tensor) -> Tensor:
        """(..., D) -> (...)."""
        name = f"routers.{layer}.router"
        if self.settings.routing.router == "linear":
            return (x @ self.extra[f"{name}.weight"].T + self.extra[f"{name}.bias"])[..., 0]
        middle = x @ self.extra[f"{name}.0.weight"].T + self.extra[f"{name}.0.bias"]
        middle = middle * torch.sigmoid(middle)
        return (middle @ self.extra[f"{name}.2.weight"].T + self.extra[f"{name}.2.bias"])[..., 0]

    def logits(self, hidden: Tensor) -> Tensor:
        head = self.state["lm_head.weight"].clone()
        head[self.latent_id] = self.extra["latent.head_row_D"]
        return hidden @ head.T

    # ---- layers -----------------------------------------------------------------------------------------------------

    def rotate(self, x_HSd: Tensor, positions_S3: list[tuple[int, int, int]]) -> Tensor:
        """M-RoPE: the first frequencies turn with the temporal position, the next with the row, the last the column."""
        width = x_HSd.shape[-1]
        theta = self.text.rope_parameters["rope_theta"]
        sections = self.text.rope_parameters["mrope_section"]
        axis = [which for which, size in enumerate(sections) for _ in range(size)]
        angle = torch.empty(len(positions_S3), width // 2)
        for token, position in enumerate(positions_S3):
            for frequency in range(width // 2):
                angle[token, frequency] = position[axis[frequency]] * theta ** (-2 * frequency / width)
        cos, sin = angle.cos().to(x_HSd.dtype), angle.sin().to(x_HSd.dtype)
        first, second = x_HSd[..., : width // 2], x_HSd[..., width // 2 :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def block(
        self, layer: int, x_SD: Tensor, positions: list[tuple[int, int, int]], is_key_S: list[bool] | None = None
    ) -> tuple[Tensor, Tensor]:
        """A pre-norm layer over tokens in order, causal; tokens with `is_key_S` False are invisible to the others.

        Returns the output and the attention probabilities (H, S, S).
        """
        size, heads, key_heads = len(x_SD), self.text.num_attention_heads, self.text.num_key_value_heads
        normed = self.norm(f"layers.{layer}.input_layernorm", x_SD)
        query, key, value = (
            self.linear(f"{layer}.self_attn.{which}_proj", normed).view(size, number, -1).transpose(0, 1)
            for which, number in (("q", heads), ("k", key_heads), ("v", key_heads))
        )
        query, key = self.rotate(query, positions), self.rotate(key, positions)
        key, value = (x.repeat_interleave(heads // key_heads, dim=0) for x in (key, value))
        seen = torch.tensor(
            [[j <= i and (is_key_S is None or is_key_S[j] or i == j) for j in range(size)] for i in range(size)]
        )
        score = (query @ key.transpose(1, 2)) / math.sqrt(query.shape[-1])
        probability = score.masked_fill(~seen, -math.inf).softmax(-1)
        mixed = (probability @ value).transpose(0, 1).reshape(size, -1)
        x_SD = x_SD + self.linear(f"{layer}.self_attn.o_proj", mixed)
        normed = self.norm(f"layers.{layer}.post_attention_layernorm", x_SD)
        gate = self.linear(f"{layer}.mlp.gate_proj", normed)
        inner = gate * torch.sigmoid(gate) * self.linear(f"{layer}.mlp.up_proj", normed)
        return x_SD + self.linear(f"{layer}.mlp.down_proj", inner), probability

    def alpha(self, layer: int) -> int:
        """A(l), eq. 15 corrected."""
        start, end, layers = self.settings.routing.alpha, self.settings.routing.alpha_end, self.text.num_hidden_layers
        if end is None:
            return start
        return round(end + (start - end) / 2 * (1 + math.cos(math.pi * layer / (layers - 1))))

    def routes(self, layer: int) -> bool:
        routing = self.settings.routing
        if routing.depth == 0:
            return False
        if routing.layers == "all":
            return True
        return layer % 2 == 1 if routing.layers == "every_second" else layer in routing.layers

    def gates(self, layer: int, x: Tensor) -> Tensor:
        """g over the tokens of one chunk."""
        score = self.router(layer, x)
        return torch.sigmoid(score) if self.settings.routing.gate == "sigmoid" else score.softmax(0)

    def refine(
        self,
        layer: int,
        hidden_SD: Tensor,
        positions: list[tuple[int, int, int]],
        spans: list[tuple[int, int, int]],
        run: Run,
    ) -> Tensor:
        """Section 5 for one layer. `spans` are (chunk, start, end) of what routes on its own: chunks, and the parts of
        the prompt."""
        routing = self.settings.routing
        tokens: list[int] = []  # index in the sequence of the routed tokens, chunk after chunk
        owner: list[int] = []
        gate: list[Tensor] = []
        first_of = {chunk: start for chunk, start, _ in reversed(spans)}
        for span, (chunk, start, end) in enumerate(spans):
            score = self.router(layer, hidden_SD[start:end]).tolist()
            ranked = sorted(range(end - start), key=lambda i: -score[i])
            chosen = sorted(ranked[: min(self.alpha(layer), end - start)])
            first = self.gates(layer, hidden_SD[start:end])
            run.routed.setdefault((layer, chunk), []).extend(start - first_of[chunk] + i for i in chosen)
            tokens += [start + i for i in chosen]
            owner += [span] * len(chosen)
            gate += [first[i] for i in chosen]
        if routing.positions == "keep":
            places = [positions[i] for i in tokens]
        else:
            places = [(i, i, i) for i in range(len(tokens))]
        u = hidden_SD[tokens]
        running = [True] * len(tokens)
        depth = [0] * len(tokens)
        update = torch.zeros_like(u)
        for d in range(routing.depth):
            if d > 0:
                gate = self.deeper_gates(layer, u, owner, running)
            if routing.threshold > 0:
                running = [on and float(g) >= routing.threshold for on, g in zip(running, gate, strict=True)]
            if not any(running):
                break
            out, _ = self.block(layer, u, places, running)
            rows = [gate[i] * out[i] if running[i] else torch.zeros_like(out[i]) for i in range(len(tokens))]
            u = torch.stack(rows)
            update = update + self.extra[f"routers.{layer}.step_encoding_RD"][d] * u
            depth = [number + on for number, on in zip(depth, running, strict=True)]
        for span, (chunk, _, _) in enumerate(spans):
            own = [depth[i] for i in range(len(tokens)) if owner[i] == span]
            run.depths.setdefault((layer, chunk), []).extend(own)
        hidden_SD = hidden_SD.clone()
        hidden_SD[tokens] = hidden_SD[tokens] + update
        return hidden_SD

    def deeper_gates(self, layer: int, u: Tensor, owner: list[int], running: list[bool]) -> list[Tensor]:
        """Gates of the tokens that still run, read again and normalised within what chose them; 0 for the others."""
        gate = [torch.zeros((), dtype=u.dtype)] * len(owner)
        for chunk in sorted(set(owner)):
            mine = [i for i in range(len(owner)) if owner[i] == chunk and running[i]]
            if mine:
                for i, g in zip(mine, self.gates(layer, u[mine]), strict=True):
                    gate[i] = g
        return gate

    def run(self, chunks: list[Chunk]) -> Run:
        """The whole sequence, layer by layer."""
        hidden, *deep = torch.cat([self.widened(chunk.embeds_SD) for chunk in chunks]).chunk(1 + len(self.deep), dim=1)
        positions = [place for chunk in chunks for place in chunk.positions_S3]
        spans, start = [], 0
        for number, chunk in enumerate(chunks):
            behind = start + (chunk.visual[-1] + 1 if chunk.visual else 0)
            end = start + len(chunk.embeds_SD)
            edges = [start, behind, end] if start < behind < end else [start, end]
            spans += [(number, *pair) for pair in pairwise(edges) if chunk.routed]
            start += len(chunk.embeds_SD)
        run = Run(hidden, torch.zeros(len(hidden), dtype=hidden.dtype), {}, {})
        layers = self.text.num_hidden_layers
        there = list(range(len(hidden)))  # index in the sequence of the tokens that are not pruned
        rows = torch.zeros(len(chunks[0].embeds_SD), dtype=hidden.dtype)
        for layer in range(layers):
            hidden, probability = self.block(layer, hidden, positions)
            run.saliency_S = run.saliency_S.index_add(0, torch.tensor(there), probability[:, -1].mean(0) / layers)
            if self.routes(layer):
                hidden = self.refine(layer, hidden, positions, spans, run)
                for number in {number for number, _, _ in spans}:
                    first = sum(len(chunk.embeds_SD) for chunk in chunks[:number])
                    own = [i - first for i in there if first <= i]
                    run.routed[layer, number] = [own[i] for i in run.routed[layer, number]]
            if layer in self.deep:
                hidden = hidden + deep[list(self.deep).index(layer)][there]
            if layer <= (self.settings.prune.after_layer or 0) and len(there) == len(run.saliency_S):
                rows = rows + probability[:, len(rows) - 1, : len(rows)].mean(0)
                if layer == self.settings.prune.after_layer:
                    gone = self.pruned(rows, chunks[0].visual)
                    left = [i for i in there if i not in gone]
                    hidden, positions, there = hidden[left], [positions[i] for i in left], left
                    spans = [(n, max(0, a - len(gone)), b - len(gone)) for n, a, b in spans]
        run.normed_SD = torch.zeros(len(run.saliency_S), hidden.shape[1], dtype=hidden.dtype)
        run.normed_SD[there] = self.norm("norm", hidden)  # no one asks for those of pruned tokens
        return run

    def pruned(self, scores_P: Tensor, visual: tuple[int, ...]) -> set[int]:
        """The visual tokens that leave the prompt: all but a share, those the last token looks at least."""
        count = math.ceil(Fraction(str(self.settings.prune.keep)) * len(visual))
        ranked = sorted(visual, key=lambda i: -float(scores_P[i]))
        return set(ranked[count:])
