"""The plain model as transformers.exporters writes it, and the loop on the host that drives it: the peer of peer.py.

The exporter gives four graphs: the tower, the language model over a prompt, the head, and a step of decoding, each with
the fusions for ONNX Runtime on a CPU that it has. It gives no loop. So the host looks embeddings up, puts visual tokens
in their places, counts positions, chooses tokens, and hands the keys of one step to the next (as ONNX Runtime's own
values, which are not copied).

In int4 the matrices of the language model and the head are rounded by ONNX Runtime's own quantizer.

Legend: N patches, P prompt tokens, D width.
"""

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from lrkit.families.protocols import Geometry
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import EncodedPrompt

GRAPHS = ("tower", "language_model", "lm_head", "decode")
CLOSED = np.float32(-1e30)


@dataclass(frozen=True)
class HostSide:
    """What the host has to know of the model."""

    table: np.ndarray
    """The token embedding, float32 (vocabulary, D)."""
    image_id: int
    latent_id: int
    """Never said: latents are off."""
    merge_size: int
    geometry: Geometry


def export_peer(reasoner: LatentReasoner, prompt: EncodedPrompt, geometry: Geometry, folder: Path) -> HostSide:
    """Writes the graphs in float32; `prompt` is the example that they are traced on, and has one picture."""
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    model: Any = reasoner.backbone.model
    model.set_attn_implementation("sdpa")  # lrkit's own keeps a row of attention, which words have no use for
    config, image_id = OnnxConfig(dynamic=True, ort_fusions="cpu"), reasoner.backbone.image_token_id
    pixels, grids = _picture(prompt, geometry)
    ids = torch.tensor([prompt.ids])
    asked = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "image_grid_thw": grids,
        "mm_token_type_ids": (ids == image_id).long(),
    }  # fmt: skip
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = OnnxExporter().export_for_generation(model, asked, config).components
        seen = {"hidden_states": pixels, "grid_thw": grids}
        parts = {"tower": OnnxExporter().export(model.model.visual, seen, config).program}
    parts |= {name: component.program for name, component in made.items()}
    for name in GRAPHS:
        ir.save(parts[name], folder / f"{name}.onnx", external_data=f"{name}.onnx.data")
    merge = model.config.vision_config.spatial_merge_size
    table = reasoner.backbone.embedding_rows().detach().float().numpy()
    return HostSide(table, image_id, reasoner.latent.token_id, merge, geometry)


def rounded(folder: Path, into: Path, block: int, accuracy_level: int) -> None:
    """The same graphs with int4 matrices; the tower stays float, as lrkit's does."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)
    into.mkdir(parents=True)
    for name in GRAPHS:
        graph = onnx.load(folder / f"{name}.onnx")
        if name != "tower":
            _turn_matrices(graph.graph)
            how = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=accuracy_level)
            quantizer = MatMulNBitsQuantizer(graph, algo_config=how)
            quantizer.process()
            graph = quantizer.model.model
        onnx.save(graph, into / f"{name}.onnx", save_as_external_data=True, location=f"{name}.onnx.data")


def _turn_matrices(graph: Any) -> None:
    """Turns stored matrices once: the exporter leaves a large tied head to be turned by the graph, and the quantizer
    would leave it float."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in stored]:
        turned = np.ascontiguousarray(numpy_helper.to_array(stored[node.input[0]]).transpose(node.attribute[0].ints))
        graph.initializer.append(numpy_helper.from_array(turned, node.output[0]))
        graph.node.remove(node)


class Peer:
    """The graphs in ONNX Runtime."""

    def __init__(self, folder: Path, host: HostSide, threads: int) -> None:
        import onnxruntime as ort  # after lrkit, which tells it to report nothing

        self.host = host
        self.bytes = sum(file.stat().st_size for file in folder.iterdir())
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.sessions = {
            name: ort.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in GRAPHS
        }
        self.names = {name: [out.name for out in session.get_outputs()] for name, session in self.sessions.items()}
        self.asked = {name: {given.name for given in session.get_inputs()} for name, session in self.sessions.items()}

    def answer(self, prompt: EncodedPrompt, tokens: int) -> tuple[float, float, list[int]]:
        """(seconds of the prompt and its token, seconds of each of `tokens` further ones, all tokens). What an image
        processor does is done before."""
        fed, ids = self._pictures(prompt), np.array(prompt.ids)
        positions = self.host.geometry.positions(prompt.ids, self.host.image_id, prompt.grids)
        started = time.perf_counter()
        visual = self.sessions["tower"].run(["pooler_output"], fed)[0]
        embeds = self.host.table[ids]
        embeds[ids == self.host.image_id] = visual
        places = np.concatenate([np.arange(len(ids))[None], positions])[:, None]
        hidden, keys = self._step("language_model", {"inputs_embeds": embeds[None], "position_ids": places}, {})
        logits = self.sessions["lm_head"].run(None, {"input": hidden.numpy()[:, -1:]})[0]
        said = [self._best(logits)]
        read = time.perf_counter()
        following = int(positions.max()) + 1
        for step in range(tokens):
            place = np.array([len(ids) + step, *[following + step] * 3])[:, None, None]
            token = np.array([[said[-1]]])
            asked = {"input_ids": token, "position_ids": place, "mm_token_type_ids": np.zeros_like(token)}
            logits, keys = self._step("decode", asked, keys)
            said.append(self._best(logits.numpy()))
        done = time.perf_counter()
        return read - started, (done - read) / max(tokens, 1), said

    def _pictures(self, prompt: EncodedPrompt) -> dict[str, np.ndarray]:
        from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

        pixels, grids = _picture(prompt, self.host.geometry)
        places = get_vision_position_ids(grids, self.host.merge_size)
        given = {"hidden_states": pixels, "grid_thw": grids, "position_ids": places}
        given["cu_seqlens"] = get_vision_cu_seqlens(grids)
        return {name: value.numpy() for name, value in given.items() if name in self.asked["tower"]}

    def _step(self, name: str, given: Mapping[str, np.ndarray], keys: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """(first output, keys by the names under which the next step takes them)."""
        import onnxruntime as ort  # after lrkit, which tells it to report nothing

        fed = {key: ort.OrtValue.ortvalue_from_numpy(value) for key, value in given.items() if key in self.asked[name]}
        made = self.sessions[name].run_with_ort_values(self.names[name], {**fed, **keys})
        caches = zip(self.names[name][1:], made[1:], strict=True)
        return made[0], {f"input.{key.removeprefix('output.')}": value for key, value in caches}

    def _best(self, logits: np.ndarray) -> int:
        row = logits[0, -1]
        row[self.host.latent_id] = CLOSED
        return int(row.argmax())


def _picture(prompt: EncodedPrompt, geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel values (N, values), grid (1, 3)) of a prompt with one picture."""
    assert prompt.patches is not None and len(prompt.grids) == 1, "the peer is asked about one picture"
    grids: Sequence[Sequence[int]] = prompt.grids
    return torch.from_numpy(geometry.pixel_values(prompt.patches)), torch.tensor([list(grid) for grid in grids])
