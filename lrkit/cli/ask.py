"""`lrkit ask MODEL --image x.png "question"`: an answer, and on request the picture of where the model looked. Several
questions about the same pictures look at these once.

MODEL is a bundle (run without torch, on ONNX Runtime or by its TensorRT engines) or a checkpoint.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lrkit.cli.eval import parse_modes, say_note
from lrkit.cli.shared.console import beside_json, err
from lrkit.cli.shared.options import AttentionOption, Device, Download, Dtype, Engine, EngineOption, Provider, Threads
from lrkit.cli.shared.tables import json_option, milliseconds, write_json
from lrkit.errors import UserError
from lrkit.files import check_writable

if TYPE_CHECKING:
    from lrkit.contract.choosing import Choices, Say
    from lrkit.runtime.answer.answer import Answer, Choice
    from lrkit.runtime.scenes.scene import Scene
    from lrkit.runtime.sdk import Reasoner

EXAMPLES = """
Examples:

    lrkit ask tiny --image rooms.png "Take 4 hops. Which room are you in? Start in room 3"

    lrkit ask tiny --image rooms.png --mode cot "Take 2 hops. Which room are you in? Start in room 0"

    lrkit ask my-bundle --image rooms.png --threads 1 "Take 4 hops. Which room are you in? Start in room 3"

    lrkit ask my-bundle --image rooms.png --engine tensorrt-rtx "Take 4 hops. Which room are you in? Start in room 3"

    lrkit ask switched --adapter doors --image rooms.png "Take 4 hops. Which room are you in? Start in room 3"

    lrkit ask intel --image rooms.png --engine openvino --engine-option cache=true "Which room are you in?"

    lrkit ask tiny --image rooms.png "Take 3 hops. Which room are you in? Start in room 7" "Read the signs."

    lrkit ask tiny --image rooms.png --say texts --choice 3 --choice 7 "Take 2 hops. Which room are you in? Start here"

    lrkit ask MODEL --image bird.jpg --choice "a bird" --choice "a plane" "What is it?"

    lrkit ask MODEL --image rooms.png --save-scene rooms.scene --follow-up "What is in room 3?" "And beside it?"

    lrkit ask MODEL --scene rooms.scene "What is in room 4?"

    lrkit ask tiny --image rooms.png --trace trace.png "Take 3 hops. Which room are you in? Start in room 7"
"""


SAY_HELP = "Of --choice: letters (listed behind the question), texts, or listed (in it already). [default: letters]"
ChoiceOption = Annotated[
    list[str] | None, typer.Option(help="One of the possible answers; repeat for each.", rich_help_panel="Choices")
]
Adapter = Annotated[
    str | None, typer.Option(help="Of a bundle with several: the adapter to answer by.", rich_help_panel="Adapter")
]


def ask(
    model: Annotated[str, typer.Argument(help="A bundle, a checkpoint folder, or a shipped name such as tiny.")],
    question: Annotated[list[str], typer.Argument(help="What to ask; several questions look at the pictures once.")],
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeat for several.")] = None,
    mode: Annotated[str, typer.Option(help="latent, cot or direct.")] = "latent",
    choice: ChoiceOption = None,
    say: Annotated[str | None, typer.Option(help=SAY_HELP, rich_help_panel="Choices")] = None,
    adapter: Adapter = None,
    follow_up: Annotated[
        bool, typer.Option("--follow-up", help="Each question has those before in its context.")
    ] = False,
    scene: Annotated[Path | None, typer.Option(help="A scene that --save-scene wrote, instead of looking.")] = None,
    save_scene: Annotated[Path | None, typer.Option(help="Keep what the look left, for --scene.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Draw the regions that each latent step replayed.")] = None,
    trace_font: Annotated[Path | None, typer.Option(help="A font file for what Pillow's own font lacks.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest speech.")] = None,
    max_latent_steps: Annotated[int | None, typer.Option(min=0, help="Instead of the model's own limit.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Shrink larger pictures to so many pixels.")] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    attention: AttentionOption = None,
    engine: Engine = None,
    engine_option: EngineOption = None,
    provider: Provider = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which to give up; none by default.")] = None,
    threads: Threads = None,
    download: Download = False,
    json_file: Annotated[Path | None, json_option("Write the answer and its history.")] = None,
) -> None:
    """Ask a question, or several, about one picture, several, or none."""
    from lrkit.runtime.engines.table import parse_options
    from lrkit.runtime.sdk import Reasoner

    (chosen,), alone = parse_modes(mode)[:1], len(question) == 1 and scene is None and save_scene is None
    _check_files(trace, save_scene, len(question))
    choices = _choices(choice, say, alone)
    given = engine, parse_options(engine_option or [], engine), dtype, attention
    reasoner = Reasoner.open(model, device, provider, threads, *given).baseline(chosen).prepare()
    reasoner = reasoner if adapter is None else reasoner.with_adapter(adapter)
    say_note(reasoner)
    limits: Any = {"max_new_tokens": max_new_tokens, "max_latent_steps": max_latent_steps, "timeout": timeout}
    images = list(image or [])
    if alone:
        answers = [reasoner.ask(images, question[0], chosen, max_pixels=max_pixels, choices=choices, **limits)]
    else:
        seen = _scene(reasoner, images, scene, save_scene, {"max_pixels": max_pixels, "timeout": timeout})
        answers = [(seen.follow_up if follow_up else seen.ask)(one, chosen, **limits) for one in question]
    _show(answers, json_file)
    if trace is not None:
        answers[0].save_trace(trace, trace_font)


def _told(choice: "Choice") -> str:
    """Which choice, how it was found, and how sure the model is."""
    if choice.index is None:
        return "choice: none, for the answer names none of them, or several"
    text = f"choice {choice.index + 1}: {choice.text} ({choice.by})"
    if choice.scores is None:
        return text
    top = max(choice.scores)
    share = 1 / sum(math.exp(score - top) for score in choice.scores)
    return f"{text}, {share:.1%} of the probability of all choices"


def _scene(
    reasoner: "Reasoner", images: list[Path], scene: Path | None, save: Path | None, options: dict[str, Any]
) -> "Scene":
    """The scene of a file, or a look at the pictures; kept where that is wanted."""
    looked = None if scene is not None else reasoner.look(images, **options)
    seen = looked or reasoner.open_scene(scene or "", images)
    if save is not None:
        seen.save(save)
    return seen


def _choices(texts: list[str] | None, say: str | None, alone: bool) -> "Choices | None":
    """Before a model is loaded: the choices are choices."""
    from lrkit.contract.choosing import Choices

    if not texts:
        if say is not None:
            raise UserError("--say tells how choices are said, and there is no --choice; give two of these or more")
        return None
    if not alone:
        raise UserError("--choice is for one question about pictures; ask one question, and leave scenes out")
    return Choices.of(Choices(tuple(texts), cast("Say", say or "letters")))


def _check_files(trace: Path | None, save_scene: Path | None, questions: int) -> None:
    """Before a model is loaded: what is to be written can be."""
    from lrkit.runtime.answer.trace import trace_format

    if trace is not None:
        trace_format(trace)
        check_writable(trace)
        if questions > 1:
            raise UserError(f"--trace draws one answer, and there are {questions} questions; ask one")
    if save_scene is not None:
        check_writable(save_scene)


def _show(answers: list["Answer"], json_file: Path | None) -> None:
    """The answers on standard output; what each took, and what was shrunk for it, on standard error."""
    for answer in answers:
        # Unwrapped: what is piped on is the answer as it was spoken, whatever the width of the terminal.
        beside_json(json_file, soft_wrap=True).print(answer.text)
        if answer.choice is not None:
            err(soft_wrap=True).print(_told(answer.choice))
        if answer.resized:
            err(soft_wrap=True).print(f"note: the model saw {', '.join(map(str, answer.resized))}")
        err(soft_wrap=True).print(
            f"{answer.ar_steps} autoregressive steps ({answer.latent_steps} latent, {answer.spoken_tokens} tokens "
            f"spoken), {answer.replayed_tokens} visual tokens replayed, {milliseconds(answer.timings['total'])}"
        )
    found = [answer.to_dict() for answer in answers]
    write_json(json_file, found[0] if len(found) == 1 else {"answers": found})
