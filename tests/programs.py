"""Builds programs of tiny random reasoners for tests, runs them, and compares with torch."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from lrkit.contract.bundle.io_spec import HALTING
from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.settings import ReasonerSettings
from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.program import Program, build_program
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.tower_pieces import grafted
from lrkit.export.graph.tower_writer import Tower, write_tower
from lrkit.export.graph.writer import Writer
from lrkit.export.targets.target import Target
from lrkit.export.weights.quantizers.quantizer import Calibrate, quantized, quantized_rows, uncalibrated
from lrkit.export.weights.reader import reader_of
from lrkit.export.weights.source import Source, read_source
from lrkit.families.table import DEFAULT
from lrkit.model.generate import Generated, GenerationLimits, generate
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.engines.programs.feed import build_feed
from lrkit.runtime.engines.programs.run_reports import routed_tokens
from tests.tiny import EOS, GEOMETRY, IMAGE, Prompt, batch, tiny_trace

MAX_NEW_TOKENS = 6
PARTS = {"layers": "layers", "vision": "vision", "merger": "vision"}
"""`Backbone.part_of` -> a part that a target has a scheme for."""


def limits(settings: ReasonerSettings, **changes: int) -> Limits:
    values = {"max_prompt_tokens": 64, "max_patches": 96, "max_images": 4, "max_new_tokens": MAX_NEW_TOKENS}
    return Limits(**{**values, "max_latent_steps": settings.think.max_latent_steps, **changes})


def dialect_of(source: Source, target: Target) -> Writer:
    return writer_for(target, source.weight, source.dimensions.recipe.norm, low_rank=source.low_rank)


def build(
    reasoner: LatentReasoner,
    target: Target | None = None,
    ends: Sequence[int] = (EOS,),
    fresh_tower: bool = False,
    keep: bool = False,
    **changes: int,
) -> Program:
    """The program of a tiny reasoner; `fresh_tower` traces its own tower, where it is not that of the tied model of
    seed 0. Its adapter is merged for good, unless `keep` is set."""
    target = target or Target()
    source = read_source(reasoner, keep)
    dialect = dialect_of(source, target)
    tower = write_tower(source, GEOMETRY, dialect) if fresh_tower else tower_of(dialect)
    geometry = GEOMETRY.with_zoom(reasoner.settings.replay.fine_zoom)
    return build_program(Stack(source, dialect, limits(reasoner.settings, **changes), geometry), ends, tower)


def tower_of(dialect: Writer) -> Tower:
    """That of the tied tiny reasoner of seed 0."""
    return grafted(tiny_trace(dialect.target.computes_fp16, dialect.fused), dialect)


class Runner:
    """One program in ONNX Runtime."""

    def __init__(self, program: Program, **session: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in session.items():
            options.add_session_config_entry(key, value)
        self.program = program
        model = ir.serde.serialize_model(program.model).SerializeToString()
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(
        self,
        prompt: Prompt,
        think: bool = True,
        fixed: bool = False,
        latents: int = 3,
        tokens: int = MAX_NEW_TOKENS,
        past: dict[str, np.ndarray] | None = None,
        ids: Sequence[int] | None = None,
    ):
        feed = build_feed(
            prompt.ids if ids is None else ids, prompt.grids, None if past else prompt.patches,
            image_id=IMAGE, geometry=GEOMETRY, think=think, fixed_latents=fixed, max_latent_steps=latents,
            max_new_tokens=tokens, spec=self.program.spec, past=past,
            windows=prompt.windows,
        )  # fmt: skip
        assert self.program.spec.problems(feed) == []
        names = [spec.name for spec in self.program.spec.outputs]
        return dict(zip(names, self.session.run(names, feed), strict=True))


def torch_run(
    reasoner: LatentReasoner,
    prompt: Prompt,
    think: bool = True,
    fixed: bool = False,
    latents: int = 3,
    tokens: int = MAX_NEW_TOKENS,
) -> tuple[Generated, np.ndarray, np.ndarray, np.ndarray]:
    """(answer, prefill logits, latent states, extra passes per chunk and layer) of the torch model."""
    states: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    original = reasoner.think

    def watched(state, active):
        replayed = original(state, active)
        states.append(state.last_hidden_BD[0].numpy().copy())
        return replayed

    read = reasoner.read

    def watched_read(prompts, looks=None):
        state = read(prompts, looks)
        depths.append(state)
        states.append(reasoner.logits(state.last_hidden_BD)[0].numpy().copy())
        return state

    reasoner.think, reasoner.read = watched, watched_read
    try:
        asked = GenerationLimits(EOS, tokens, latents, "fixed" if fixed else "adaptive")
        answer = generate(reasoner, batch([prompt]), "latent" if think else "cot", asked)[0]
    finally:
        del reasoner.think, reasoner.read
    layers = sorted(reasoner.routing)
    passes = np.zeros((len(states), len(layers)), np.int64)
    for routed in depths[0].refinement.log:
        passes[routed.chunk, layers.index(routed.layer)] += int(routed.depth_BA.sum())
    return answer, states[0], np.array(states[1:]), passes


def assert_equal(reasoner: LatentReasoner, runner: Runner, prompt: Prompt, tolerance: float = 1e-4, **how) -> Generated:
    """Program against torch: logits, latent states, replayed tokens and weights, depths, counts, tokens."""
    answer, logits, states, passes = torch_run(reasoner, prompt, **how)
    out = runner(prompt, **how)
    steps = answer.latent_steps
    np.testing.assert_allclose(out["prefill_logits"], logits, atol=tolerance * max(1.0, np.abs(logits).max()))
    assert out["latent_steps"] == steps
    if "latent_states" in out:
        np.testing.assert_allclose(
            out["latent_states"][:steps],
            states.reshape(steps, out["latent_states"].shape[1]),
            atol=tolerance * max(1.0, np.abs(states).max(initial=0)),
        )
        assert not out["latent_states"][steps:].any()
    for step in range(steps if "replayed" in out else 0):
        expected = answer.replayed[step] if answer.replayed else []
        found = [index for index in out["replayed"][step].tolist() if index >= 0]
        assert found == [token.index for token in expected]
        np.testing.assert_allclose(
            out["replay_weights"][step][: len(found)], [t.weight for t in expected], atol=tolerance
        )
    if "replayed" in out:
        assert (out["replayed"][steps:] == -1).all()
    if "routed_depths" in out:
        assert out["routed_depths"][: steps + 1].tolist() == passes.tolist()
        assert not out["routed_depths"][steps + 1 :].any()
        layers = sorted(reasoner.routing)
        assert routed_tokens(out, layers, steps, answer.tokens_per_window) == answer.routed_tokens
        assert not out["routed_latents"][steps:].any() if "routed_latents" in out else steps == 0
    spoken = out["token_ids"][: int(out["num_tokens"])].tolist()
    assert spoken == answer.token_ids
    assert (out["token_ids"][len(spoken) :] == -1).all()
    assert bool(out["finished"]) == answer.finished
    assert out["ar_steps"] == answer.ar_steps == out["latent_steps"] + out["spoken_steps"]
    assert HALTING[int(out["halting"])] == answer.halting
    return answer


def teach_to_stop_after(reasoner: LatentReasoner, prompt: Prompt, steps: int, latents: int = 3) -> None:
    """Sets the latent token's head row so that, on this prompt, the model wants exactly `steps` latent steps of
    `latents`.

    The row is never fed back, so the hidden states are those of a run of fixed length."""
    state = reasoner.prefill(batch([prompt]))
    hidden = [state.last_hidden_BD]
    with torch.no_grad():
        for _ in range(latents):
            reasoner.think(state, torch.ones(1, dtype=torch.bool))
            hidden.append(state.last_hidden_BD)
        wanted = torch.tensor([50.0 if i < steps else -50.0 for i in range(latents + 1)])
        reasoner.latent.head_row_D.copy_(torch.linalg.pinv(torch.cat(hidden).double()) @ wanted.double())


def with_rounded_weights(
    reasoner: LatentReasoner, target: Target, family: str = DEFAULT, calibrate: Calibrate = uncalibrated
) -> LatentReasoner:
    """A copy whose matrices hold the values that the target's integers stand for. `calibrate` goes by the names of
    torch's modules."""
    rounded = copy.deepcopy(reasoner)
    backbone, reader = rounded.backbone, reader_of(family)
    model: Any = backbone.model

    def rewrite(weight: torch.Tensor, part: str, name: str) -> None:
        scheme, values = target.scheme_of(part), weight.detach().numpy()
        if scheme is None:
            return
        if part == "embedding":
            made = quantized_rows(values, scheme, target.int4.block, name)
        else:
            made = quantized(values, scheme, target.int4.block, name, calibrate(name), target.int4.method)
        if made is not None:
            weight.copy_(torch.from_numpy(made.dequantize()))

    with torch.no_grad():
        # Untied first: head and embedding are rounded in their own ways.
        head = backbone.head_rows().detach().clone()
        head[rounded.latent.token_id] = rounded.latent.head_row_D
        rewrite(backbone.embedding_rows(), "embedding", "embed_tokens")
        rewrite(head, "head", "lm_head")
        module, _, weight = reader.head.rpartition(".")
        setattr(model.get_submodule(module), weight, torch.nn.Parameter(head))
        rounded.latent.head_row_D.copy_(head[rounded.latent.token_id])
        for name, module in model.named_modules():
            name = name.removesuffix(".base_layer")
            part = PARTS.get(backbone.part_of(f"{name}.weight"))
            if isinstance(module, torch.nn.Linear) and part is not None and "lora_" not in name:
                rewrite(module.weight, part, name)
    return rounded
