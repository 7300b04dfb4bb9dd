"""Fuzzed: data lines, pictures, chat templates, tokenizers, ONNX files."""

import json
import os
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from lrkit.data.jsonl import check_jsonl
from lrkit.data.sources import load_samples
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import Processor
from tests.fuzz import jsonl_lines, mutate, pictures

_work: list[Path] = []
TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m['content'] %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}{{ eos_token }}",
    "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}{{ m.content | trim }}"
    "{%- endfor -%}{{ strftime_now('%Y') }}",
    "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
)
JINJA = (
    "{{ 1 / 0 }}", "{{ messages[99].x.y }}", "{{ ''.__class__.__mro__ }}", "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'x' * 10**10 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{% include 'x' %}", "{{ [] | first }}",
    "{% set x = messages.append(1) %}", "{{ messages | tojson }}", "{{ 9**9**9 }}", "{{ x", "{% endfor %}", "{# ",
    "{{ '%s' | format(1, 2) }}", "{{ raise_exception('a\nb') }}", "{{ none.x }}", "{{ range(10) | list | batch(0) }}",
    "{% import 'os' as os %}", "{{ cycler() }}", "{{ lipsum(n=100) }}", "{{ messages | map('x') | list }}",
    "{% for a, b in messages %}{% endfor %}", "{{ 'a' + 1 }}", "{{ messages | sort }}", "{{ strftime_now(1) }}",
)  # fmt: skip


ROWS: dict[str, dict[str, Any]] = {
    "m3cot": {
        "id": "a",
        "question": "Which ?",
        "choices": ["a", "b"],
        "answer": "B",
        "rationale": "It is b. So B.",
        "context": "",
        "image": "a.png",
    },
    "scienceqa": {
        "question": "Which ?",
        "choices": ["a", "b"],
        "answer": 1,
        "hint": "x",
        "solution": "a.\n\nb.",
        "image": None,
    },
    "gqa": {
        "question": "Which ?",
        "imageId": "a",
        "answer": "red",
        "semantic": [{"operation": "s", "argument": "b (1)"}],
    },
    "onethinker": {
        "problem": "Which ?",
        "options": ["A. a", "B. b"],
        "solution": "<answer>A</answer>",
        "process": "a",
        "images": ["a.png"],
        "messages": None,
    },
    "tabmwp": {"question": "Which ?", "choices": None, "answer": "4", "unit": "$", "solution": "a\nb", "id": "a"},
}
"""Schema -> a row that can be used."""


def prepare(work: Path, bundle: Path) -> None:
    _work[:] = [work]
    os.environ["HF_HUB_OFFLINE"] = "1"  # a damaged name may be one of the hub's
    for name in ("a.png", "p.png"):
        pictures.picture("RGB").save(work / name)
    if not (work / "pipe.png").exists():
        os.mkfifo(work / "pipe.png")


@cache
def _processor() -> Processor:
    return Processor.from_folder(resolve_checkpoint("tiny"))


def _lines(rng: Random) -> list[bytes]:
    return [next(jsonl_lines.cases(rng.randrange(2**40), 1))[1] for _ in range(rng.choice((1, 3, 8)))]


def _run_lines(lines: list[bytes]) -> None:
    file = _work[0] / "lines.jsonl"
    file.write_bytes(b"\n".join(lines))
    scan = check_jsonl(file, _processor() if len(lines[0]) % 2 else None)
    assert scan.num_bad_lines + len(scan.samples) <= len(lines)
    scan.raise_if_bad()


def _rows(rng: Random) -> tuple[str, Any]:
    """A schema, or a damaged name of a set, and the content of a file in it; pictures are not looked for."""
    schema, row = rng.choice(list(ROWS.items()))
    rows: Any = [row] * rng.choice((1, 2, 5))
    if rng.random() < 0.4:
        rows = {str(number): one for number, one in enumerate(rows)}
    if rng.random() < 0.9:
        rows = mutate.values(rows, rng, 4)
    named = f"hub:FILE#{schema}" + rng.choice(("", ",on_bad=skip", ",steps=sentences", ",max_steps=1", ",pictures=."))
    return mutate.text(named, rng) if rng.random() < 0.2 else named, rows


def _run_rows(case: tuple[str, Any]) -> None:
    named, rows = case
    file = _work[0] / "rows.json"
    file.write_text(json.dumps(rows, ensure_ascii=True))
    load_samples(named.replace("FILE", str(file)), None)


def _picture(rng: Random) -> bytes:
    return next(pictures.cases(rng.randrange(2**40), 1))[1]


def _run_picture(content: bytes) -> None:
    prompt = _processor().encode_prompt([content], "Take 2 hops. Which room are you in? Start in room 3")
    assert prompt.patches is not None


def _template(rng: Random) -> dict[str, Any]:
    template: Any = mutate.text(rng.choice(TEMPLATES).replace("%}{%", "%}\n{%"), rng, JINJA)
    if rng.random() < 0.15:
        template = rng.choice(([{"name": "default", "template": template}], [template], {"default": template}, 7, [{}]))
    config: dict[str, Any] = {"chat_template": template, "eos_token": "<|im_end|>", "pad_token": {"content": "<pad>"}}
    return mutate.values(config, rng, 1) if rng.random() < 0.3 else config


def _run_template(config: Any) -> None:
    folder = _work[0] / "template"
    if not folder.exists():
        folder.mkdir()
        for name in ("tokenizer.json", "preprocessor_config.json", "config.json"):
            (folder / name).symlink_to(resolve_checkpoint("tiny").parent / "base" / name)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    Processor.from_folder(folder).format.prompt_text("q", 1)


def _onnx_case(rng: Random) -> bytes:
    import onnx

    model = onnx.ModelProto.FromString(_models()[rng.randrange(len(_models()))])
    for _ in range(rng.randint(0, 3)):
        node = rng.choice(list(model.graph.node))
        how = rng.randrange(6)
        if how == 0:
            node.op_type = rng.choice(("Softmax", "Loop", "If", "Scan", "MatMulNBits", "Nope", "", "Reshape", "\u65e5"))
        elif how == 1 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(("", "nowhere", node.name, *node.output))
        elif how == 2:
            node.attribute.append(onnx.helper.make_attribute("axis", rng.choice((-99, 2**62, [1], "x", 0.5))))
        elif how == 3:
            del node.input[:]
        elif how == 4:
            node.domain = rng.choice(("com.microsoft", "x", "ai.onnx.ml"))
        else:
            model.opset_import[0].version = rng.choice((0, 1, 9, 99, -5))
    data = model.SerializeToString()
    return mutate.raw(data, rng) if rng.random() < 0.5 else data


@cache
def _models() -> list[bytes]:
    from onnx import TensorProto, helper, numpy_helper, parser

    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 8] x, int64[2] s) => (float y) {
      a = Softmax <axis = -1> (x)  b = Reshape (a, s)  c = MatMul (b, b)  d = LayerNormalization (c, w)
      y = ReduceMean <keepdims = 0> (d) }"""
    import numpy as np

    first = parser.parse_model(text)
    first.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "w"))
    body = helper.make_graph(
        [helper.make_node("Identity", ["c_in"], ["c_out"]), helper.make_node("Add", ["v_in", "v_in"], ["v_out"])],
        "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in
         (("i", TensorProto.INT64, []), ("c_in", TensorProto.BOOL, []), ("v_in", TensorProto.FLOAT, [2]))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in
         (("c_out", TensorProto.BOOL, []), ("v_out", TensorProto.FLOAT, [2]))],
    )  # fmt: skip
    loop = helper.make_graph(
        [helper.make_node("Loop", ["n", "c", "v"], ["out"], name="loop", body=body)], "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in
         (("n", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, [2]))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    second = helper.make_model(loop, opset_imports=[helper.make_opsetid("", 21)])
    return [first.SerializeToString(), second.SerializeToString()]


def _run_onnx(content: bytes) -> None:
    from lrkit.export.preflight.findings import check_graph, load_graph
    from lrkit.export.preflight.rules import load_rules

    file = _work[0] / "model.onnx"
    file.write_bytes(content)
    target = ("tensorrt-rtx", "tensorrt-10", "ort")[len(content) % 3]
    check_graph(load_graph(file), load_rules(target), really=False).to_dict()


TARGETS: dict[str, Any] = {
    "lines": (6, _lines, _run_lines),
    "published rows": (3, _rows, _run_rows),
    "pictures": (8, _picture, _run_picture),
    "template": (1, _template, _run_template),
    "onnx": (3, _onnx_case, _run_onnx),
}
"""Name -> weight, how a case is drawn, what is done with it; a template is rendered in a process of its own."""
