"""Questions and steps to ids and back: word-level and byte-pair tokenizers, folders, chat templates, refusals."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from lrkit.contract.prompt import PromptFormat, SpecialTokens
from lrkit.data.tokenizer import SPECIAL_TOKENS, build_word_tokenizer
from lrkit.errors import CheckpointError, DataError, MissingExtraError
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.runtime.encode.processor import Processor

GEOMETRY = ImageGeometry(patch_size=4, min_pixels=64, max_pixels=80 * 64)
STEP = "Step 1 : I am in room 3 ; the sign here shows 7 , so I go on to room 7 ."
QUESTION = "Take 4 hops. Which room are you in? Start in room 3"
WORDS = [*f"{STEP} Take hops Which are you ? Start".split(), *(str(number) for number in range(20))]

CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_processor() -> Processor:
    return Processor(build_word_tokenizer(WORDS), GEOMETRY, PromptFormat())


def byte_pair_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer as Qwen2's, small: trained on a few sentences, with the same special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([STEP, QUESTION, "Answer: 7\nAnswer: Paris. The answer is a bird.\n"] * 20, trainer)
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def byte_pair_processor() -> Processor:
    format = PromptFormat(tokens=SpecialTokens(pad="<|endoftext|>"))
    return Processor(byte_pair_tokenizer(), GEOMETRY, format)


@pytest.fixture(params=[word_processor, byte_pair_processor], ids=["words", "byte pairs"])
def processor(request: pytest.FixtureRequest) -> Processor:
    return request.param()


def test_a_hop_is_23_tokens_and_the_answer_marker_is_one() -> None:
    processor = word_processor()
    assert len(processor.encode_speech([STEP], "7")) == 23 + 3
    assert [processor.tokenizer.id_to_token(token) for token in processor.encode_speech([], "10")] == [
        "Answer:",
        "10",
        "<|im_end|>",
    ]


@pytest.mark.parametrize("answer", ["7", "10", "room 7", "7 ; 3"])
def test_what_direct_mode_forces_is_a_true_prefix_of_the_spoken_answer(processor: Processor, answer: str) -> None:
    prefix = processor.answer_prefix_ids
    ids = processor.encode_speech([], answer)
    assert ids[: len(prefix)] == prefix
    assert len(ids) > len(prefix) + 1


def test_a_piece_has_the_same_ids_wherever_speech_begins(processor: Processor) -> None:
    """However many steps the latents replace, what is left is said with the same ids: training equals inference."""
    steps = [STEP, STEP.replace("7", "9"), STEP.replace("3", "1")]
    whole = processor.encode_speech(steps, "7")
    for replaced in range(len(steps) + 1):
        rest = processor.encode_speech(steps[replaced:], "7")
        assert whole[len(whole) - len(rest) :] == rest
    assert whole.count(processor.eos_id) == 1


def test_decoded_speech_is_readable_and_its_answer_found(processor: Processor) -> None:
    said = processor.decode(processor.encode_speech([STEP, STEP], "7"))
    assert processor.format.find_answer(said, "cot") == "7"
    assert "<|" not in said


def test_word_level_text_has_no_space_before_punctuation() -> None:
    processor = word_processor()
    said = processor.decode(processor.encode_speech([STEP], "7"))
    assert said == "Step 1: I am in room 3; the sign here shows 7, so I go on to room 7. Answer: 7"
    again = processor.encode_speech([said.removesuffix(" Answer: 7")], "7")
    assert again == processor.encode_speech([STEP], "7")


def test_every_visual_token_has_an_image_token(processor: Processor) -> None:
    images = [Image.new("RGB", (80, 32)), Image.new("RGB", (24, 16))]
    prompt = processor.encode_prompt(images, QUESTION)
    assert prompt.grids == [(1, 8, 20), (1, 4, 6)]
    assert prompt.sizes == [(80, 32), (24, 16)]
    assert prompt.ids.count(processor.image_id) == 40 + 6
    assert prompt.patches is not None
    assert prompt.patches.shape == (160 + 24, GEOMETRY.patch_bytes)
    start = processor.tokenizer.token_to_id("<|vision_start|>")
    starts = [index for index, token in enumerate(prompt.ids) if token == start]
    assert starts == [0, 42]
    assert processor.decode(prompt.ids) == QUESTION


def test_a_question_without_a_picture_has_no_patches(processor: Processor) -> None:
    prompt = processor.encode_prompt([], QUESTION)
    assert prompt.patches is None
    assert prompt.grids == []
    assert processor.image_id not in prompt.ids


@pytest.mark.parametrize("question", ["", "  ", "Take <|image_pad|> hops", "Take <|latent|>", "Start <|im_end|>"])
def test_a_question_cannot_smuggle_control_tokens_in(processor: Processor, question: str) -> None:
    with pytest.raises(DataError, match="the question"):
        processor.encode_prompt([], question)


def test_steps_and_answers_are_checked_too(processor: Processor) -> None:
    for steps, answer, says in ([""], "7", "the step is empty"), ([], " ", "the answer is empty"):
        with pytest.raises(DataError, match=says):
            processor.encode_speech(steps, answer)
    with pytest.raises(DataError, match=r"the step holds <\|latent\|>"):
        processor.encode_speech([f"{STEP} <|latent|>"], "7")


def test_unknown_words_are_named() -> None:
    with pytest.raises(DataError, match=r"vocabulary lacks \(zebra, Bob\)"):
        word_processor().encode_prompt([], "Which zebra are you , Bob ?")


def test_a_folder_is_read_back_as_it_was_saved(processor: Processor, tmp_path: Path) -> None:
    processor.save(tmp_path)
    again = Processor.from_folder(tmp_path)
    assert again.format == processor.format
    assert again.geometry == processor.geometry
    assert again.latent_id == processor.latent_id
    assert again.encode_speech([STEP], "7") == processor.encode_speech([STEP], "7")
    image = Image.new("RGB", (80, 32))
    assert again.encode_prompt([image], QUESTION).ids == processor.encode_prompt([image], QUESTION).ids


def test_transformers_opens_the_saved_tokenizer(processor: Processor, tmp_path: Path) -> None:
    processor.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = processor.format.prompt_text(QUESTION, 1)
    assert theirs(text, add_special_tokens=False).input_ids == processor.tokenizer.encode(text).ids
    assert theirs.eos_token_id == processor.eos_id
    assert theirs.pad_token_id == processor.pad_id
    ids = processor.encode_speech([STEP], "7")
    assert theirs.decode(ids, skip_special_tokens=True).strip() == processor.decode(ids)


def test_special_tokens_of_the_word_tokenizer_come_first() -> None:
    tokenizer = build_word_tokenizer(WORDS)
    assert [tokenizer.id_to_token(index) for index in range(len(SPECIAL_TOKENS))] == list(SPECIAL_TOKENS)
    assert tokenizer.get_vocab_size() == len(SPECIAL_TOKENS) + 1 + len(dict.fromkeys(WORDS))


def test_a_word_that_the_tokenizer_would_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        build_word_tokenizer(["room", "don't"])


def test_a_missing_latent_token_is_added_behind_the_vocabulary() -> None:
    tokenizer = byte_pair_tokenizer()
    before = tokenizer.get_vocab_size()
    processor = Processor(tokenizer, GEOMETRY, PromptFormat(tokens=SpecialTokens(pad="<|endoftext|>")))
    assert processor.latent_id == before


def test_another_missing_special_token_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"no token <\|pad\|> for pad"):
        Processor(byte_pair_tokenizer(), GEOMETRY, PromptFormat())


def hugging_face_folder(folder: Path, template: str | None) -> Path:
    """A folder as transformers writes it, without lrkit's prompt.json."""
    byte_pair_tokenizer().save(str(folder / "tokenizer.json"))
    pad = {"__type": "AddedToken", "content": "<|endoftext|>", "special": True}
    config = {"eos_token": "<|im_end|>", "pad_token": pad, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(GEOMETRY.to_hf()))
    return folder


def test_a_plain_folder_takes_its_format_from_the_chat_template(tmp_path: Path) -> None:
    processor = Processor.from_folder(hugging_face_folder(tmp_path, CHAT))
    assert processor.format.tokens.pad == "<|endoftext|>"
    assert processor.format.prompt_text("Why?", 2) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + "<|vision_start|><|image_pad|><|vision_end|>" * 2
        + "Why?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_chat_prompt_equals_that_of_transformers(tmp_path: Path) -> None:
    processor = Processor.from_folder(hugging_face_folder(tmp_path, CHAT))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": "Which {braces}, which room?"}]
    messages = [{"role": "user", "content": content}]
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert processor.format.prompt_text("Which {braces}, which room?", 1) == text


def test_a_chat_template_in_a_file_of_its_own_is_found(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path, None)
    (folder / "chat_template.jinja").write_text(CHAT)
    assert Processor.from_folder(folder).format.template.startswith("<|im_start|>system")


def test_a_chat_template_that_cannot_be_rendered_for_want_of_a_package_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hugging_face_folder(tmp_path, CHAT)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"lrkit\[train\]"):
        Processor.from_folder(folder)


def test_without_a_chat_template_the_plain_prompt_is_used(tmp_path: Path) -> None:
    format = Processor.from_folder(hugging_face_folder(tmp_path, None)).format
    assert format.template == "{images}{question}"


@pytest.mark.parametrize(
    ("template", "says"), [("{{ messages[0].content | nope }}", "cannot be rendered"), ("hello", "does not show")]
)
def test_an_unusable_chat_template_is_named(tmp_path: Path, template: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        Processor.from_folder(hugging_face_folder(tmp_path, template))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"template": "{question}"}, "{images} 0 times"),
        ({"template": "{images}{question}{question}"}, "{question} 2 times"),
        ({"answer": "{answer}"}, "no text before"),
        ({"image": "<img>"}, "image holds"),
    ],
)
def test_a_format_without_its_placeholders_is_refused(values: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=r"must hold|no text") as error:
        PromptFormat(**values)
    assert says in str(error.value)


def test_a_damaged_folder_is_named_file_by_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        Processor.from_folder(tmp_path)
    word_processor().save(tmp_path)
    (tmp_path / "prompt.json").write_text('{"templat": 1}')
    with pytest.raises(CheckpointError, match=r"prompt\.json.*templat"):
        Processor.from_folder(tmp_path)
    (tmp_path / "prompt.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"prompt\.json: is not valid JSON"):
        Processor.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is not a usable tokenizer"):
        Processor.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("spoken", "answer"),
    [
        ("Answer: 7", "7"),
        ("Step. Answer: 3 Answer: 7", "7"),
        ("the answer is 7", None),
        ("Answer:", ""),
        ("", None),
    ],
)
def test_the_answer_is_what_stands_after_the_last_marker(spoken: str, answer: str | None) -> None:
    assert PromptFormat().find_answer(spoken, "cot") == answer


def test_what_the_template_says_behind_the_answer_is_taken_off() -> None:
    format = PromptFormat(answer="So it is {answer}, I think.")
    assert format.find_answer("Well. So it is 7, I think.", "cot") == "7"
