"""Latent reasoning in plain transformers: `model.generate(**inputs, custom_generate=PLACE, trust_remote_code=True)`.

PLACE is a folder or a repository of the hub that lrkit wrote, with this file as custom_generate/generate.py. The file
needs torch, transformers and safetensors, and nothing of lrkit:

    model = AutoModelForImageTextToText.from_pretrained(PLACE)
    found = model.generate(**inputs, custom_generate=PLACE, trust_remote_code=True, return_dict_in_generate=True)
    found.sequences, found.latent_steps, found.halting

Further arguments: `mode` is latent (default), cot (in words) or direct (the bare answer); `max_latent_steps` and
`halting` ("adaptive", "fixed") stand in place of the model's own; `checkpoint` names PLACE again where the weights were
loaded from somewhere else, as with an adapter.

A latent step is one pass whose input is the last hidden state. Before it the visual tokens that were attended to most
are replayed. The model thinks while `<|latent|>` is its best next token; then it speaks, greedily. Latents have no ids,
so `sequences` holds the prompt and what was said.

Not done here, and refused: routed tokens, pruned visual tokens, replay of the full picture, latents that are
constants or parallel, sampling and beams. lrkit does the first four: https://github.com/lrkit/lrkit

Legend: B batch, P prompt tokens, S tokens of a chunk, N keys so far, V visual tokens, K replayed tokens, D width, E
    width of a visual token's row: its input embedding, and what it adds behind deeper layers.
"""

import inspect
import json
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoTokenizer, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file

_PLACE_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_ATTENTION = "sdpa_and_last_row"


@dataclass
class LatentOutput(ModelOutput):
    """What `generate` gives with `return_dict_in_generate=True`."""

    sequences: Tensor | None = None
    """(B, prompt and spoken tokens), as of every `generate`; in the mode direct the answer's marker stands between."""
    latent_steps: Tensor | None = None
    """(B,)"""
    halting: tuple[str, ...] | None = None
    """Why each stopped thinking: decided, limit, fixed, or off (other modes)."""
    replayed: tuple[Tensor, ...] | None = None
    """Per latent step (B, K): which visual tokens were replayed, counted in the prompt; -1 for none."""


@torch.no_grad()
def generate(
    model: Any, inputs: Tensor | None = None, mode: str = "latent", max_latent_steps: int | None = None,
    halting: str | None = None, checkpoint: str | None = None, tokenizer: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """Answers a batch of prompts; see above. All other arguments are those of `model.generate`."""
    if mode not in ("latent", "cot", "direct") or halting not in (None, "adaptive", "fixed"):
        raise ValueError(f"mode is {mode!r}, halting {halting!r}; give latent, cot or direct, and adaptive or fixed")
    if kwargs.get("do_sample") or (kwargs.get("num_beams") or 1) > 1:
        raise ValueError("latent steps are decoded greedily; leave do_sample and num_beams out")
    options = {name: kwargs.pop(name) for name in _PLACE_OPTIONS if name in kwargs}
    method = Method.read(checkpoint or model.name_or_path, options, model)
    if max_latent_steps is not None:
        method.most = max_latent_steps
    method.fixed = method.fixed if halting is None else halting == "fixed"
    ids = inputs if inputs is not None else kwargs.pop("input_ids")
    if mode == "direct":
        ids = method.begin_answer(ids, tokenizer, options, kwargs)
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters and "mm_token_type_ids" not in kwargs:
        kwargs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    if method.counts_on and "position_ids" not in kwargs:
        mask = kwargs.get("attention_mask")
        counted = torch.ones_like(ids) if mask is None else mask
        kwargs["position_ids"] = (counted.cumsum(1) - 1).clamp_min(0).expand(3, -1, -1)

    def loop(_: Any, input_ids: Tensor, **prepared: Any) -> Any:
        return Run(model, method, mode, input_ids, **prepared).answer()

    # type(model): with trust_remote_code=True at loading, model.generate is this function.
    return type(model).generate(model, input_ids=ids, custom_generate=loop, do_sample=False, num_beams=1, **kwargs)


@dataclass
class Method:
    """What reasoner.json and lrkit.safetensors of a checkpoint say."""

    place: str
    latent_id: int
    most: int
    fixed: bool
    scale: str
    replay: dict[str, Any]
    counts_on: bool
    """Whether visual tokens are numbered on as words are, where the family would number rows and columns."""
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, place: str, options: dict[str, Any], model: Any) -> "Method":
        """Raises: ValueError: no such files, or a method that this file does not do."""
        told = _read_json(place, "reasoner.json", options)
        if not told:
            raise ValueError(f"{place} holds no reasoner.json; give checkpoint=, the place that does")
        settings = told["settings"]
        think, replay = settings["think"], settings["replay"]
        refused = {
            "routed tokens (routing.depth)": settings["routing"]["depth"] > 0,
            "pruned visual tokens (prune)": settings.get("prune", {}).get("after_layer") is not None,
            "replay of the full picture (replay.source)": replay.get("source", "prompt") != "prompt",
            "latents that are not fed back (think.latents)": think.get("latents", "fed_back") != "fed_back",
        }
        if names := ", ".join(name for name, there in refused.items() if there):
            raise ValueError(f"{place} needs {names}, which this file does not do; ask it with lrkit")
        file = str(cached_file(place, "lrkit.safetensors", **options))
        loaded = {name: tensor.to(model.device) for name, tensor in load_file(file).items()}
        if any(name.startswith("backbone.") for name in loaded):
            raise ValueError(f"{place} holds weights in place of its base's; push it with --merge to use it here")
        counts_on = _read_json(place, "preprocessor_config.json", options).get("visual_positions") == "sequence"
        return cls(
            place, told["latent_id"], think["max_latent_steps"], think["halting"] == "fixed", think["latent_scale"],
            replay, counts_on, loaded,
        )  # fmt: skip

    def begin_answer(self, ids: Tensor, tokenizer: Any, options: dict[str, Any], kwargs: dict[str, Any]) -> Tensor:
        """Ends the prompts with the answer's marker, which the mode direct forces. Lengthens masks in `kwargs`."""
        marker = _read_json(self.place, "prompt.json", options)["answer"].partition("{answer}")[0].rstrip()
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(self.place, **options)
        found = tokenizer(marker, add_special_tokens=False, return_tensors="pt").input_ids.to(ids)
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if kwargs.get(name) is not None:
                more = kwargs[name].new_full((len(ids), found.shape[1]), value)
                kwargs[name] = torch.cat([kwargs[name], more], dim=1)
        return torch.cat([ids, found.expand(len(ids), -1)], dim=1)

    def as_input(self, hidden_BD: Tensor) -> Tensor:
        """A hidden state as the input of the latent behind it, of the length of an embedding."""
        if self.scale == "none":
            return hidden_BD
        scale = self.weights.get("latent.scale")
        if scale is None:
            scale = self.weights["latent.norm"] / hidden_BD.float().norm(dim=-1, keepdim=True).clamp_min(1e-30)
        return (hidden_BD.float() * scale).to(hidden_BD.dtype)

    def weigh(self, score_BK: Tensor, valid_BK: Tensor) -> Tensor:
        """Weights of the selected tokens, 0 in empty slots."""
        name = self.replay["weighting"]
        if name == "softmax":
            weight = score_BK.masked_fill(~valid_BK, torch.finfo(score_BK.dtype).min).softmax(1)
        elif name == "relative":
            score_BK = score_BK.masked_fill(~valid_BK, 0.0)
            mean = score_BK.sum(1, keepdim=True) / valid_BK.sum(1, keepdim=True).clamp_min(1)
            weight = score_BK / mean.clamp_min(torch.finfo(score_BK.dtype).tiny)
        elif name == "none":
            weight = torch.ones_like(score_BK)
        else:
            raise ValueError(f"the replay weighting {name} is not known here; ask {self.place} with lrkit")
        return weight.masked_fill(~valid_BK, 0.0)


def _read_json(place: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A file of a checkpoint, here or on the hub; empty where there is none."""
    file = cached_file(place, name, _raise_exceptions_for_missing_entries=False, **options)
    return {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


@dataclass
class Watch:
    """Reads, while the model runs, what it does not return."""

    layers: list[Any]
    """The attention modules whose rows count."""
    embeds_BSD: Tensor = field(init=False)
    """What entered the first layer."""
    hidden_BD: Tensor = field(init=False)
    """What the head read: the last position, behind the final norm."""
    rows: list[Tensor] = field(default_factory=list)
    """Per layer (B, N): attention of the last position, averaged over heads."""
    deep: tuple[Tensor, ...] = ()
    """What the visual tokens of the prompts add behind deeper layers, where they do."""
    given: dict[str, Any] = field(default_factory=dict)
    """What the decoder gets besides: the same of replayed tokens."""


_watch: ContextVar[Watch | None] = ContextVar("_watch", default=None)


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    """SDPA, and beside it the softmax row of the chunk's last position: no attention matrix is ever stored."""
    found = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    watch = _watch.get()
    if watch is not None and any(module is layer for layer in watch.layers):
        last = query[:, :, -1:].reshape(len(query), key.shape[1], -1, query.shape[-1])
        score = (last @ key.transpose(2, 3)).float() * kwargs["scaling"]
        if attention_mask is not None:
            score = score.masked_fill(~attention_mask[:, :, -1:], float("-inf"))
        watch.rows.append(score.softmax(-1).mean((1, 2)))
    return found


@contextmanager
def watched(model: Any) -> Generator[Watch]:
    """Hooks into the model, and takes the hooks out again."""
    decoder = model.get_decoder()
    watch = Watch([layer.self_attn for layer in decoder.layers])
    AttentionInterface.register(_ATTENTION, attend)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)

    def enters(_: Any, arguments: Any) -> None:
        watch.embeds_BSD = arguments[0]

    def leaves(_: Any, arguments: Any) -> None:
        watch.hidden_BD = arguments[0][:, -1]

    def goes_deep(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        watch.deep = tuple(named.get("deepstack_visual_embeds") or ())
        return arguments, {**named, **watch.given}

    hooks = [
        decoder.register_forward_pre_hook(goes_deep, with_kwargs=True),
        decoder.layers[0].register_forward_pre_hook(enters),
        model.get_output_embeddings().register_forward_pre_hook(leaves),
    ]
    configs = [layer.self_attn.config for layer in decoder.layers]
    before = [config._attn_implementation for config in configs]
    token = _watch.set(watch)
    try:
        for config in configs:
            config._attn_implementation = _ATTENTION
        yield watch
    finally:
        for config, kernel in zip(configs, before, strict=True):
            config._attn_implementation = kernel
        for hook in hooks:
            hook.remove()
        _watch.reset(token)


class Run:
    """One call of `generate`: read the prompts, think, speak."""

    def __init__(
        self, model: Any, method: Method, mode: str, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any,
        generation_config: Any, streamer: Any = None, **prepared: Any,
    ) -> None:  # fmt: skip
        """Arguments as `generate` of transformers prepares them."""
        self.model, self.method, self.mode, self.ids = model, method, mode, input_ids
        self.processor, self.criteria, self.config = logits_processor, stopping_criteria, generation_config
        self.streamer = streamer
        self.cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        mask = prepared.pop("attention_mask", None)
        self.mask_BN = torch.ones_like(input_ids) if mask is None else mask
        self.prepared = {name: value for name, value in prepared.items() if name not in (self.cache_name, "use_cache")}
        self.cache = DynamicCache()  # one that grows, however many latents come between the words
        self.steps_B = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        self.replayed: list[Tensor] = []

    def answer(self) -> Any:
        """The ids, or with `return_dict_in_generate` a `LatentOutput`."""
        with watched(self.model) as self.watch:
            self._read()
            halting = self._think()
            self._speak()
        if not self.config.return_dict_in_generate:
            return self.ids
        return LatentOutput(self.ids, self.steps_B, tuple(halting), tuple(self.replayed))

    def _read(self) -> None:
        """The prompts, as the model itself reads them."""
        self._run(self.mask_BN, input_ids=self.ids, **self.prepared)
        positions = self.prepared.get("position_ids")
        if positions is None:
            positions = (self.mask_BN.cumsum(1) - 1).clamp_min(0)
        # Of four rows the first counts words, and the others place tokens.
        positions = positions[-3:] if positions.dim() == 3 else positions[None]
        self.axes = len(positions)
        self.next_B = positions.masked_fill(self.mask_BN == 0, 0).amax((0, 2)) + 1
        visual_BP = (self.ids == self.model.config.image_token_id) & (self.mask_BN > 0)
        count = int(visual_BP.sum(1).max())
        self.column_BV = (~visual_BP).to(torch.int8).sort(dim=1, stable=True).indices[:, :count]
        self.free_BV = self.real_BV = torch.arange(count, device=self.ids.device) < visual_BP.sum(1, keepdim=True)
        embeds = self.watch.embeds_BSD
        deep = [torch.zeros_like(embeds).masked_scatter(visual_BP[..., None], one) for one in self.watch.deep]
        rows = torch.cat([embeds, *deep], dim=-1)
        self.rows_BVE = rows.gather(1, self.column_BV[..., None].expand(-1, -1, rows.shape[-1]))
        self.hidden_BD, self.logits_BW, self.score_BV = self.watch.hidden_BD, self._logits(), self._saliency()

    def _think(self) -> list[str]:
        """Latent steps until every sample has stopped; says why each did."""
        if self.mode != "latent":
            return ["off"] * len(self.ids)
        active_B = torch.ones_like(self.steps_B, dtype=torch.bool)
        for step in range(self.method.most + 1):
            if not self.method.fixed:
                active_B = active_B & (self.logits_BW.argmax(-1) == self.method.latent_id)
            if step == self.method.most or not bool(active_B.any()):
                break
            self._think_once(active_B)
        if self.method.fixed:
            return ["fixed"] * len(self.ids)
        return ["limit" if still else "decided" for still in active_B.tolist()]

    def _think_once(self, active_B: Tensor) -> None:
        """One latent step, for the samples where `active_B` is True."""
        latent_B1D = self.method.as_input(self.hidden_BD)[:, None]
        tokens_BKE, valid_BK = self._replay(active_B)
        tokens_BKD, *deep = tokens_BKE.split(latent_B1D.shape[-1], dim=-1)
        before = valid_BK.shape[1]
        valid_BS = torch.cat([valid_BK & active_B[:, None], active_B[:, None]], dim=1)
        counted = valid_BS if self.method.replay["positions"] == "consecutive" else valid_BS[:, -1:]
        position_BS = (self.next_B[:, None] + counted.cumsum(1) - 1).clamp_min(0)
        self.next_B = self.next_B + counted.sum(1)
        if counted.shape[1] == 1:
            position_BS = position_BS.expand(-1, before + 1)
        self.mask_BN = torch.cat([self.mask_BN, valid_BS.to(self.mask_BN.dtype)], dim=1)
        if deep:
            shown_BS = torch.arange(before + 1, device=valid_BS.device).expand_as(valid_BS) < before
            added = [one.flatten(0, 1) for one in deep]
            self.watch.given = {"visual_pos_masks": shown_BS, "deepstack_visual_embeds": added}
        embeds = torch.cat([tokens_BKD, latent_B1D], dim=1)
        self._run(self.mask_BN, inputs_embeds=embeds, position_ids=self._axes(position_BS))
        self.watch.given = {}
        keep = active_B[:, None]
        self.hidden_BD = torch.where(keep, self.watch.hidden_BD, self.hidden_BD)
        self.logits_BW = torch.where(keep, self._logits(), self.logits_BW)
        self.score_BV = torch.where(keep, self._saliency(), self.score_BV)
        self.steps_B = self.steps_B + active_B

    def _replay(self, active_B: Tensor) -> tuple[Tensor, Tensor]:
        """The visual tokens (B, K, E) that come back before a latent, in prompt order, and which of the slots are
        filled. None comes twice."""
        free_BV, most = self.free_BV & active_B[:, None], self.method.replay["num_tokens"]
        count = min(most, int(free_BV.sum(1).max())) if free_BV.shape[1] else 0
        last = max(free_BV.shape[1] - 1, 0)
        ranked = self.score_BV.masked_fill(~free_BV, float("-inf")).sort(dim=1, descending=True, stable=True).indices
        ranked = ranked[:, :count]
        index_BK = torch.where(free_BV.gather(1, ranked), ranked, last + 1).sort(dim=1).values
        valid_BK, index_BK = index_BK <= last, index_BK.clamp_max(last)
        self.replayed.append(torch.where(valid_BK, index_BK, -1))
        weight_BK = self.method.weigh(self.score_BV.gather(1, index_BK), valid_BK)
        tokens = self.rows_BVE.gather(1, index_BK[..., None].expand(-1, -1, self.rows_BVE.shape[-1]))
        mixed = tokens.float() * weight_BK[..., None]
        taken = torch.zeros_like(self.free_BV, dtype=torch.long).scatter_add(1, index_BK, valid_BK.long()) > 0
        self.free_BV = self.free_BV & ~taken
        if self.method.replay["formation"] == "soft_mix" and count:
            total = weight_BK.sum(1)[:, None, None].clamp_min(torch.finfo(weight_BK.dtype).tiny)
            mixed, valid_BK = mixed.sum(1, keepdim=True) / total, valid_BK.any(1, keepdim=True)
        return mixed.to(tokens.dtype), valid_BK

    def _speak(self) -> None:
        """Greedy tokens until each sample has ended, by the criteria of `generate`."""
        pad = self.config._pad_token_tensor
        going_B = torch.ones_like(self.steps_B, dtype=torch.bool)
        while True:
            words_BW = self.logits_BW.float()
            words_BW[:, self.method.latent_id] = torch.finfo(words_BW.dtype).min
            scores_BW = self.processor(self.ids, words_BW)
            token_B = torch.where(going_B, scores_BW.argmax(-1), self.ids[:, -1] if pad is None else pad)
            self.ids = torch.cat([self.ids, token_B[:, None]], dim=1)
            if self.streamer is not None:
                self.streamer.put(token_B.cpu())
            going_B = going_B & ~self.criteria(self.ids, scores_BW)
            if not bool(going_B.any()):
                break
            self.mask_BN = torch.cat([self.mask_BN, torch.ones_like(self.mask_BN[:, :1])], dim=1)
            self._run(self.mask_BN, input_ids=token_B[:, None], position_ids=self._axes(self.next_B[:, None]))
            self.next_B = self.next_B + 1
            self.logits_BW = self._logits()
        if self.streamer is not None:
            self.streamer.end()

    def _run(self, mask_BN: Tensor, **inputs: Any) -> None:
        """One chunk behind all that was read before."""
        self.watch.rows.clear()
        given = {**inputs, "attention_mask": mask_BN, self.cache_name: self.cache, "use_cache": True}
        self.found = self.model(**{"logits_to_keep": 1, **given}, return_dict=True)

    def _axes(self, position_BS: Tensor) -> Tensor:
        return position_BS if self.axes == 1 else position_BS.expand(self.axes, -1, -1)

    def _logits(self) -> Tensor:
        """Of the last position, with the column of `<|latent|>` from the row that was trained for it."""
        logits_BW = self.found.logits[:, -1].clone()
        own = self.watch.hidden_BD.float() @ self.method.weights["latent.head_row_D"]
        logits_BW[:, self.method.latent_id] = own.to(logits_BW.dtype)
        return logits_BW

    def _saliency(self) -> Tensor:
        """(B, V): attention of the last position to the visual tokens, averaged over layers and heads."""
        row_BN = torch.stack(self.watch.rows).mean(0)
        return row_BN.gather(1, self.column_BV).masked_fill(~self.real_BV, 0.0)
