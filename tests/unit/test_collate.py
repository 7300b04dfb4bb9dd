"""Batches: padding on both sides, mixed pictures, which steps latents stand for, weights of tokens in the loss."""

import pytest
import torch
from PIL import Image

from lrkit.contract.prompt import PromptFormat
from lrkit.contract.sample import Sample
from lrkit.data.collate import collate_training, merge_steps, num_replaced
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.errors import CapacityError, ConfigError, DataError
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts

STEPS = ("go to room 1 .", "go to room 2 .", "go to room 3 .", "go to room 4 .")
WORDS = ["go", "to", "room", ".", "Where", "now", "?", *(str(number) for number in range(10))]
BOARD = Image.new("RGB", (80, 32), (200, 100, 0))
SMALL = Image.new("RGB", (16, 24), (0, 100, 0))


@pytest.fixture(scope="module")
def processor() -> Processor:
    geometry = ImageGeometry(patch_size=4, min_pixels=64, max_pixels=80 * 32)
    return Processor(build_word_tokenizer(WORDS), geometry, PromptFormat())


def sample(
    *images: Image.Image, steps: tuple[str, ...] = STEPS, answer: str = "4", question: str = "Where ?"
) -> Sample:
    return Sample(images, question, steps, answer, id="s1")


def spoken(processor: Processor, row: torch.Tensor, mask: torch.Tensor) -> list[str]:
    return [processor.token_text(int(token)) for token in row[mask]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_different_lengths_and_pictures_are_padded(processor: Processor, side) -> None:
    encoded = [
        processor.encode_prompt([BOARD], "Where ?"),
        processor.encode_prompt([], "Where now ?"),
        processor.encode_prompt([SMALL, BOARD], "Where ?"),
    ]
    batch = collate_prompts(encoded, processor.pad_id, side)
    longest = len(encoded[2].ids)
    assert batch.input_ids.shape == batch.prompt_mask.shape == (3, longest)
    for row, prompt in enumerate(encoded):
        assert batch.input_ids[row][batch.prompt_mask[row]].tolist() == prompt.ids
        assert (batch.input_ids[row][~batch.prompt_mask[row]] == processor.pad_id).all()
    assert bool(batch.prompt_mask[1, 0]) == (side == "right")
    assert batch.images_per_sample == (1, 0, 2)
    assert batch.grids is not None
    assert batch.grids.tolist() == [[1, 8, 20], [1, 6, 4], [1, 8, 20]]
    assert batch.pixel_values is not None
    assert batch.pixel_values.shape == (160 + 24 + 160, 96)
    assert (batch.input_ids == processor.image_id).sum() == 40 + 6 + 40


def test_a_batch_of_text_has_no_pixels(processor: Processor) -> None:
    batch = collate_prompts([processor.encode_prompt([], "Where ?")], processor.pad_id).to("cpu")
    assert batch.pixel_values is None
    assert batch.grids is None
    assert batch.images_per_sample == (0,)


def test_latents_replace_the_first_steps_and_the_rest_is_spoken(processor: Processor) -> None:
    samples = [sample(BOARD), sample(), sample(BOARD), sample(steps=())]
    batch = collate_training(processor, samples, [0, 1, 4, 0])
    said = [spoken(processor, *row) for row in zip(batch.speech_ids, batch.speech_mask, strict=True)]
    end = ["Answer:", "4", "<|im_end|>"]
    assert said[0] == [*" ".join(STEPS).split(), *end]
    assert said[1] == [*" ".join(STEPS[1:]).split(), *end]
    assert said[2] == said[3] == end
    assert batch.num_latents.tolist() == [0, 1, 4, 0]
    assert batch.speech_ids.dtype == batch.num_latents.dtype == torch.int64


def test_a_bare_answer_moves_its_marker_into_the_prompt_as_direct_mode_does(processor: Processor) -> None:
    batch = collate_training(processor, [sample(BOARD)], [0], spoken="none")
    assert spoken(processor, batch.speech_ids[0], batch.speech_mask[0]) == ["4", "<|im_end|>"]
    assert batch.input_ids[0, -1:].tolist() == processor.answer_prefix_ids


def test_after_all_latents_the_bare_answer_may_be_spoken_without_its_marker(processor: Processor) -> None:
    batch = collate_training(processor, [sample(BOARD)] * 2, [4, 4], spoken="bare")
    assert spoken(processor, batch.speech_ids[0], batch.speech_mask[0]) == ["4", "<|im_end|>"]
    assert batch.input_ids[0].tolist() == processor.encode_prompt([BOARD], sample(BOARD).question).ids
    assert batch.may_think.all()


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [(0, 4, []), (3, 4, [1, 1, 1]), (4, 4, [1] * 4), (5, 4, [1, 1, 1, 2]), (8, 3, [2, 3, 3]), (9, 1, [9]), (3, 0, [])],
)
def test_steps_beyond_the_most_latents_are_merged_evenly_and_in_order(count: int, most: int, sizes: list[int]) -> None:
    groups = merge_steps(range(count), most)
    assert [len(group) for group in groups] == sizes
    assert [step for group in groups for step in group] == list(range(count))[: sum(sizes)]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("most", range(1, 6))
def test_all_latents_stand_for_all_steps(count: int, most: int) -> None:
    latents = min(count, most)
    assert num_replaced(count, latents, most) == count
    counts = [num_replaced(count, number, most) for number in range(latents + 1)]
    assert counts == sorted(set(counts))


def test_merged_steps_are_replaced_together(processor: Processor) -> None:
    batch = collate_training(processor, [sample()], [1], max_latent_steps=2)
    said = spoken(processor, batch.speech_ids[0], batch.speech_mask[0])
    assert said[:-3] == " ".join(STEPS[2:]).split()


def test_more_latents_than_steps_are_refused(processor: Processor) -> None:
    with pytest.raises(DataError, match="5 latent steps were asked for a sample with 4 reasoning steps"):
        collate_training(processor, [sample()], [5])
    with pytest.raises(DataError, match="at most 2"):
        num_replaced(4, 3, 2)


def test_the_first_matching_rule_weighs_a_token_and_padding_weighs_nothing(processor: Processor) -> None:
    rules = {"^[0-9]+$": 4.0, "^(room|4)$": 0.5}
    batch = collate_training(processor, [sample(steps=STEPS[:1]), sample(steps=())], [0, 0], token_weights=rules)
    assert batch.speech_weights[0].tolist() == [1, 1, 0.5, 4, 1, 1, 4, 1]
    assert batch.speech_weights[1].tolist() == [1, 4, 1, 0, 0, 0, 0, 0]


def test_a_sample_may_keep_some_of_its_words_out_of_the_loss(processor: Processor) -> None:
    reading = Sample((), "Where ?", (), "3 7 1 0", info={"weight_pattern": (1.0, 0.0)})
    batch = collate_training(processor, [reading, sample(steps=())], [0, 0], token_weights={"^[0-9]+$": 4.0})
    assert batch.speech_weights.tolist() == [[1, 0, 4, 0, 4, 0], [1, 4, 1, 0, 0, 0]]
    direct = collate_training(processor, [reading], [0], spoken="none", token_weights={"^[0-9]+$": 4.0})
    assert direct.speech_weights.tolist() == [[0, 4, 0, 4, 0]]


def test_a_rule_that_is_no_regular_expression_is_named(processor: Processor) -> None:
    with pytest.raises(ConfigError, match=r"token_weights: '\[' is no regular expression"):
        collate_training(processor, [sample()], [0], token_weights={"[": 2.0})


def test_a_sample_that_cannot_be_encoded_is_named(processor: Processor) -> None:
    with pytest.raises(DataError, match=r"^sample s1: the answer holds words"):
        collate_training(processor, [sample(answer="zebra")], [0])
    with pytest.raises(CapacityError, match=r"^sample s1: "):
        collate_training(processor, [sample(Image.new("1", (9000, 9000)))], [0])


def test_moving_a_batch_moves_every_tensor(processor: Processor) -> None:
    batch = collate_training(processor, [sample(BOARD)], [2]).to("meta")
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 9
    assert all(tensor.device.type == "meta" for tensor in tensors)
