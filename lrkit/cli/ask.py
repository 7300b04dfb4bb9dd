"""`lrkit ask MODEL --image x.png "question"`: an answer, and on request the picture of where the model looked. Several
questions about the same pictures look at these once. `lrkit ask MODEL --data questions.jsonl -o answered`: every line
of a file, also on Ray.

MODEL is a bundle (run without torch, on ONNX Runtime or by its TensorRT engines) or a checkpoint.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lrkit.cli.eval import parse_modes, say_note
from lrkit.cli.shared.console import beside_json, err
from lrkit.cli.shared.many_lines import LINES, Lines, Out, ShardLines, SkipBad, Where, Workers
from lrkit.cli.shared.options import AttentionOption, Device, Download, Dtype, Engine, EngineOption, Provider, Threads
from lrkit.cli.shared.tables import json_option, milliseconds, write_json
from lrkit.errors import UserError
from lrkit.files import check_writable

if TYPE_CHECKING:
    from lrkit.contract.choosing import Choices, Say
    from lrkit.contract.generated import Mode
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

    lrkit ask my-bundle --data questions.jsonl -o answered

    lrkit ask my-bundle --data "parts/*.parquet" --engine ray --workers 8 --threads 2 -o answered
"""


SAY_HELP = "Of --choice: letters (listed behind the question), texts, or listed (in it already). [default: letters]"
ChoiceOption = Annotated[
    list[str] | None, typer.Option(help="One of the possible answers; repeat for each.", rich_help_panel="Choices")
]
QuestionArgument = Annotated[
    list[str] | None, typer.Argument(help="What to ask; several questions look at the pictures once.")
]
FollowUp = Annotated[bool, typer.Option("--follow-up", help="Each question has those before in its context.")]
LinesOption = Annotated[
    str | None, typer.Option(help="Ask every line: a .jsonl or .parquet, or a pattern.", rich_help_panel=LINES)
]
BatchSize = Annotated[int | None, typer.Option(help="Lines asked at once. [default: 32]", min=1, rich_help_panel=LINES)]
Adapter = Annotated[
    str | None, typer.Option(help="Of a bundle with several: the adapter to answer by.", rich_help_panel="Adapter")
]


def ask(
    model: Annotated[str, typer.Argument(help="A bundle, a checkpoint folder, or a shipped name such as tiny.")],
    question: QuestionArgument = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeat for several.")] = None,
    mode: Annotated[str, typer.Option(help="latent, cot or direct.")] = "latent",
    choice: ChoiceOption = None,
    say: Annotated[str | None, typer.Option(help=SAY_HELP, rich_help_panel="Choices")] = None,
    adapter: Adapter = None,
    follow_up: FollowUp = False,
    scene: Annotated[Path | None, typer.Option(help="A scene that --save-scene wrote, instead of looking.")] = None,
    save_scene: Annotated[Path | None, typer.Option(help="Keep what the look left, for --scene.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Draw the regions that each latent step replayed.")] = None,
    trace_font: Annotated[Path | None, typer.Option(help="A font file for what Pillow's own font lacks.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest speech.")] = None,
    max_latent_steps: Annotated[int | None, typer.Option(min=0, help="Instead of the model's own limit.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Shrink larger pictures to so many pixels.")] = None,
    data: LinesOption = None,
    out: Out = None,
    workers: Workers = None,
    batch_size: BatchSize = None,
    skip_bad: SkipBad = False,
    shard_lines: ShardLines = None,
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
    """Ask a question, or several, about one picture, several, or none; or every line of a file."""
    where = Where(device, provider, threads, engine, engine_option, dtype, attention, adapter)
    limits = {"max_new_tokens": max_new_tokens, "max_latent_steps": max_latent_steps, "max_pixels": max_pixels}
    alone = {"QUESTION": question, "--image": image, "--choice": choice, "--say": say, "--follow-up": follow_up}
    alone |= {"--scene": scene, "--save-scene": save_scene, "--trace": trace, "--timeout": timeout}
    lines = Lines(data, out, workers, skip_bad, shard_lines, batch_size)
    if lines.are_asked(alone):
        _ask_lines(model, mode, lines, where, limits, json_file)
        return
    asked = _Asked(question or [], list(image or []), scene, save_scene, follow_up)
    _check_files(trace, save_scene, len(asked.questions))
    choices = _choices(choice, say, asked.alone)
    answers = asked.answers(where, model, parse_modes(mode)[0], choices, {**limits, "timeout": timeout})
    _show(answers, json_file)
    if trace is not None:
        answers[0].save_trace(trace, trace_font)


def _ask_lines(
    model: str, mode: str, lines: Lines, where: Where, limits: dict[str, Any], json_file: Path | None
) -> None:
    """Every line of a file: into its folder, and the figures of all into a report."""
    from lrkit.provenance import collect

    done = lines.answer(model, where, modes=parse_modes(mode)[:1], **limits)
    report = {"schema": 1, "kind": "answers", "model": model, "data": lines.data, "answers": str(done.answers)}
    write_json(json_file, {**report, "rows": done.rows, **done.figures, "provenance": collect()}, precious=True)


@dataclass(frozen=True)
class _Asked:
    """Questions about the same pictures."""

    questions: list[str]
    images: list[Path]
    scene: Path | None
    save_scene: Path | None
    follow_up: bool

    @property
    def alone(self) -> bool:
        """One question, for which nothing need be kept."""
        return len(self.questions) == 1 and self.scene is None and self.save_scene is None

    def answers(
        self, where: Where, model: str, mode: "Mode", choices: "Choices | None", limits: dict[str, Any]
    ) -> list["Answer"]:
        """Opens the model and asks."""
        reasoner = where.open(model).baseline(mode).prepare()
        reasoner = reasoner if where.adapter is None else reasoner.with_adapter(where.adapter)
        say_note(reasoner)
        if self.alone:
            return [reasoner.ask(self.images, self.questions[0], mode, choices=choices, **limits)]
        look = {name: limits.pop(name) for name in ("max_pixels", "timeout")}
        seen = _scene(reasoner, self.images, self.scene, self.save_scene, look)
        limits["timeout"] = look["timeout"]
        return [(seen.follow_up if self.follow_up else seen.ask)(one, mode, **limits) for one in self.questions]


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
