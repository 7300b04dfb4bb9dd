"""What a harness hands over: arguments, ways to generate and pictures are taken, or refused in one sentence."""

from typing import Any

import pytest
from PIL import Image

from lrkit.errors import ConfigError, DataError, UserError
from lrkit.harness.asked import greedy, model_args, pictures, scores_of
from lrkit.runtime.answer.answer import Answer, Choice


def test_arguments_are_read_as_a_harness_gives_them() -> None:
    args = model_args({"pretrained": "tiny", "mode": "cot", "batch_size": "4", "device": None, "max_batch_size": None})
    assert (args.pretrained, args.mode, args.batch_size, args.reply) == ("tiny", "cot", 4, "answer")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "model_args: pretrained"),
        ({"pretrained": "tiny", "mode": "fast"}, "model_args: mode"),
        ({"pretrained": "tiny", "modes": "cot"}, "model_args: modes"),
        ({"pretrained": "tiny", "batch_size": "auto"}, "model_args: batch_size"),
        ({"pretrained": "tiny", "batch_size": "9" * 5000}, "model_args: batch_size"),
        ({"pretrained": "tiny", "batch_size": 0}, "model_args: batch_size"),
        ({"pretrained": "tiny", "max_latent_steps": 2.5}, "model_args: max_latent_steps"),
        ({"pretrained": 7}, "model_args: pretrained"),
    ],
)
def test_wrong_arguments_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model_args(given)


def test_greedy_settings_of_published_tasks_are_taken() -> None:
    for kwargs in (
        {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
        {"max_new_tokens": 16, "temperature": 0.0, "top_p": None, "image_aspect_ratio": "original", "until": []},
    ):
        assert greedy(kwargs, "gqa").max_new_tokens == 16
    assert greedy({}, "t").cut("B\n\nQ: next") == "B\n\nQ: next"
    assert greedy({"until": ["Q:", "\n\n", ""]}, "t").cut("B\n\nQ: next") == "B"
    assert greedy({"until": "</s>"}, "t").cut("B</s>") == "B"


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"do_sample": True}, "asks for do_sample=True, and lrkit answers greedily; give --gen_kwargs do_sample=False"),
        ({"temperature": 0.2}, "temperature=0.2"),
        ({"num_beams": 5}, "num_beams=5"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"visual_cot": True}, "'visual_cot' in generation_kwargs, which lrkit does not know"),
        ({"max_new_tokens": 0}, "max_new_tokens=0; give 1 or more"),
        ({"max_new_tokens": "16"}, "max_new_tokens='16'"),
        ({"until": [None]}, "until"),
    ],
)
def test_what_is_not_greedy_text_is_refused(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="the task 'one'") as caught:
        greedy(kwargs, "one")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_pictures_are_found_however_deep_they_lie() -> None:
    image = Image.new("RGB", (4, 4))
    assert pictures(None, "t") == [] and pictures([], "t") == []
    assert pictures([[image], (image, "a/b.PNG")], "t") == [image, image, "a/b.PNG"]
    for wrong, what in (("film.mp4", "a film"), ({"array": [0.1]}, "sound"), (7, "an int"), ([None, 7], "an int")):
        with pytest.raises(DataError, match=f"asks about {what}, and lrkit reads pictures"):
            pictures([wrong], "t")


def test_scores_are_given_where_there_are_whole_ones() -> None:
    scored = Choice(1, "b", "scored", (-3.0, -0.5), (False, True))
    assert scores_of(Answer("b", "b", "direct", choice=scored), "t") == [(-3.0, False), (-0.5, True)]
    for partial in (None, Choice(0, "a", "said"), Choice(1, "b", "first token", (-3.0, -0.5), (False, True))):
        with pytest.raises(UserError, match="tells no probabilities of them in the mode latent; give mode=direct"):
            scores_of(Answer("b", "b", "latent", choice=partial), "t")
