"""Chat templates of plain folders: what transformers renders is rendered alike, nothing else ends in a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lrkit.errors import CheckpointError
from lrkit.runtime.encode.processor import Processor
from tests.unit.test_processor import CHAT, hugging_face_folder

PARTS = (
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ c.text }}{% endif %}{% endfor %}"
)
TURN = "<|im_start|>{{ m.role }}\n" + PARTS + "<|im_end|>\n"
END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEXT_ONLY = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}" + END
)
"""As SmolLM2 and most language models have it: content is a text."""


def loop(inside: str) -> str:
    return "{% for m in messages %}" + inside + TURN + "{% endfor %}" + END


RENDERED = {
    "plain": CHAT,
    "break": loop("{% if loop.index > 5 %}{% break %}{% endif %}"),
    "continue": loop("{% if m.role == 'system' %}{% continue %}{% endif %}"),
    "date": loop("{{ strftime_now('%Y') }} "),
    "a guard that does not fire": loop("{% if m.role == 'x' %}{{ raise_exception('roles') }}{% endif %}"),
    "generation": "{% for m in messages %}{% generation %}" + TURN + "{% endgeneration %}{% endfor %}" + END,
    "tojson": loop("{{ {'ü': [1, m.role]} | tojson(indent=1) }}"),
    "namespace": "{% set n = namespace(x=1) %}" + loop("{% set n.x = n.x + 1 %}{{ n.x }}"),
    "special tokens": "{{ eos_token }}" + loop(""),
    "no tools": "{% if tools is not none %}{{ tools | length }}{% endif %}"
    "{% if documents is not none %}## Documents{% endif %}" + loop(""),
}


@pytest.mark.parametrize("name", RENDERED)
def test_what_transformers_renders_is_rendered_alike(tmp_path: Path, name: str) -> None:
    folder = hugging_face_folder(tmp_path, RENDERED[name])
    processor = Processor.from_folder(folder)
    content = [{"type": "image"}, {"type": "text", "text": "Why? {braces} {{ 1 }}"}]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert processor.format.prompt_text("Why? {braces} {{ 1 }}", 1) == theirs


def test_a_text_only_template_gets_the_picture_as_text(tmp_path: Path) -> None:
    """SmolLM2's template adds text to text; a list of parts there once ended in a traceback."""
    processor = Processor.from_folder(hugging_face_folder(tmp_path, TEXT_ONLY))
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert (
        processor.format.prompt_text("Why?", 1) == f"<|im_start|>user\n{picture}Why?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.format.prompt_text("Why?", 0) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


UNUSABLE: dict[str, Any] = {
    "division by zero": loop("{{ 1 // 0 }}"),
    "a guard": "{{ raise_exception('only in German') }}",
    "bad syntax": "{% for m in messages %}",
    "unknown filter": "{{ messages | nope }}",
    "private attribute": "{{ messages.__class__.__mro__ }}",
    "a picture left out": "{% for m in messages %}{{ m.content[1].text }}{% endfor %}",
    "the question twice": loop("") + loop(""),
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops in loops": "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "much text": "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "much memory": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a wide number": "{{ '%0999999999d' % 1 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a number": 5,
    "a list of texts": [CHAT],
    "several without default": [{"name": "a", "template": CHAT}, {"name": "b", "template": CHAT}],
    "a list of a number": [{"name": "default", "template": 7}],
    "a mapping of a list": {"default": []},
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_template_that_cannot_be_used_is_one_sentence_with_a_remedy(tmp_path: Path, name: str) -> None:
    folder = hugging_face_folder(tmp_path, UNUSABLE[name])
    with pytest.raises(CheckpointError, match=r"add a prompt\.json") as caught:
        Processor.from_folder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [[{"name": "tool", "template": "x"}, {"name": "default", "template": CHAT}], {"default": CHAT}, {"a": CHAT}],
)
def test_the_default_of_several_templates_is_taken(tmp_path: Path, template: Any) -> None:
    assert Processor.from_folder(hugging_face_folder(tmp_path, template)).format.template.startswith(
        "<|im_start|>system"
    )


def changed(folder: Path, **values: Any) -> Path:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def test_all_end_tokens_of_a_folder_end_an_answer(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path, CHAT)
    ids = [AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids[::-1]}))
    processor = Processor.from_folder(changed(folder, eos_token="<|endoftext|>"))
    assert processor.end_ids == tuple(ids), "the one that the template ends a turn with comes first"
    processor.save(tmp_path / "saved")
    assert Processor.from_folder(tmp_path / "saved").end_ids == tuple(ids)


@pytest.mark.parametrize("eos", ["<|im_end|>", {"content": "<|im_end|>"}, ["<|im_end|>", "<|endoftext|>"], None])
def test_an_end_token_in_any_of_its_forms(tmp_path: Path, eos: Any) -> None:
    processor = Processor.from_folder(changed(hugging_face_folder(tmp_path, CHAT), eos_token=eos, pad_token=None))
    assert processor.format.tokens.eos == "<|im_end|>"
    assert processor.format.tokens.pad == "<|endoftext|>"


@pytest.mark.parametrize(
    "values", [{"eos_token": 5}, {"eos_token": [5]}, {"pad_token": {"content": []}}, {"eos_token": ""}]
)
def test_a_special_token_of_another_type_is_one_sentence(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="where a text belongs"):
        Processor.from_folder(changed(hugging_face_folder(tmp_path, CHAT), **values))


@pytest.mark.parametrize("ids", ["x", [True], {"a": 1}, [-1], [2.5]])
def test_end_ids_of_another_type_are_one_sentence(tmp_path: Path, ids: Any) -> None:
    folder = hugging_face_folder(tmp_path, CHAT)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(CheckpointError, match="where token ids belong"):
        Processor.from_folder(folder)
