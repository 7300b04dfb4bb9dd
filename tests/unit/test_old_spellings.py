"""Command lines of earlier releases, as README, docs, tests and reports had them, are today's verbs."""

import shlex

import pytest

from lrkit.cli.main import main
from lrkit.cli.shared.old_spellings import modern
from lrkit.errors import UserError

OLD_AND_NEW = {
    # export: another job than exporting
    "export tiny --check --target tensorrt-rtx --arch sm89": "preflight tiny --target tensorrt-rtx --arch sm89",
    "export my-bundle --check": "preflight my-bundle",
    "export --check m.onnx --target tensorrt-10 --json f.json": "preflight m.onnx --target tensorrt-10 --json f.json",
    "export BUNDLE --engine-file BUNDLE/engines/engines.json": "engines BUNDLE --take BUNDLE/engines/engines.json",
    "export BUNDLE --engine-file=e.json": "engines BUNDLE --take e.json",
    "export --shape qwen2-vl-2b --random-weights --int4 int4.vision=int4 int4.block=32 -o lrkit-int4": (
        "export random:qwen2-vl-2b --int4 int4.vision=int4 int4.block=32 -o lrkit-int4"
    ),
    "export --random-weights --int4 --shape=my.json": "export random:my.json --int4",
    "export --shape smolvlm-500m --random-weights --int4 --dialect tensorrt": (
        "export random:smolvlm-500m --int4 dialect=tensorrt"
    ),
    "export tiny --dialect ort limits.max_images=2": "export tiny limits.max_images=2 dialect=ort",
    # profile: another job than measuring
    "profile --compare before/report.json after/report.json": "compare before/report.json after/report.json",
    "profile --json c.json --compare a.json b.json": "compare a.json b.json --json c.json",
    "profile tiny --suite sweep --sweep replay_tokens=0,4,16 threads=1,2": (
        "sweep tiny --suite sweep threads=1,2 replay_tokens=0,4,16"
    ),
    "profile my-bundle --suite sweep --sweep max_latent_steps=2,4,8 threads=1,2 --write-choice": (
        "sweep my-bundle --suite sweep threads=1,2 --write-choice max_latent_steps=2,4,8"
    ),
    "profile tiny --sweep 'replay_tokens=0,4 threads=1,2'": "sweep tiny replay_tokens=0,4 threads=1,2 --suite smoke",
    "profile tiny --sweep replay_tokens=0,1 --sweep threads=1": "sweep tiny replay_tokens=0,1 threads=1 --suite smoke",
    "profile --shape smolvlm-256m --random-weights --dtype bfloat16": "profile random:smolvlm-256m --dtype bfloat16",
    "profile --shape qwen2-vl-2b --random-weights --cot-tokens 100 --latent-steps 4 --answer-tokens 7 --budget 600": (
        "profile random:qwen2-vl-2b forced.cot_tokens=100 forced.latent_steps=4 forced.answer_tokens=7 budget_sec=600"
    ),
    "profile --shape qwen2-vl-2b --random-weights --cot-tokens 100 --sweep replay_tokens=0,1 --threads 1 -o out": (
        "sweep random:qwen2-vl-2b --threads 1 -o out replay_tokens=0,1 forced.cot_tokens=100"
    ),
    "profile --shape qwen2-vl-7b --random-weights --suite gpu-shape --device cuda --dtype bfloat16 --cuda-graphs "
    "--sweep replay_tokens=0,1 --plan h100-sxm -o runs/7b": (
        "sweep random:qwen2-vl-7b --suite gpu-shape --device cuda --dtype bfloat16 --cuda-graphs --plan h100-sxm "
        "-o runs/7b replay_tokens=0,1"
    ),
    "profile my-bundle --set repeats=5 --set=samples.0.count=2": "profile my-bundle repeats=5 samples.0.count=2",
}


@pytest.mark.parametrize("old", OLD_AND_NEW)
def test_an_old_command_is_todays(old: str) -> None:
    assert modern(shlex.split(old)) == shlex.split(OLD_AND_NEW[old])


@pytest.mark.parametrize(
    "today",
    [
        "export tiny --int4 -o tiny-int4", "export pc --engine tensorrt-rtx --arch sm75", "profile tiny", "ls", "",
        "export tiny --engine tensorrt --target h200 --script build_engine.py", "ask tiny --shape x --check",
        "export -- --check", "profile tiny --suite accuracy --threads 1 -o tiny-cpu", "--version", "nonsense --check",
    ],
)  # fmt: skip
def test_todays_commands_stay(today: str) -> None:
    assert modern(shlex.split(today)) == shlex.split(today)


@pytest.mark.parametrize(
    ("old", "says"),
    [
        ("export --shape qwen2-vl-2b", "add --random-weights, or write random:qwen2-vl-2b instead"),
        ("profile tiny --random-weights", "name the shape as the model, as in lrkit profile random:qwen2-vl-2b"),
        ("profile --compare one.json", "--compare needs 2 values; write them behind it"),
        ("export tiny --engine-file", "--engine-file needs a value; write them behind it"),
    ],
)
def test_what_was_wrong_then_is_one_sentence_with_todays_spelling(
    old: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=says):
        modern(shlex.split(old))
    with pytest.raises(SystemExit) as left:
        main(shlex.split(old))
    said = capsys.readouterr().err
    assert left.value.code == 2 and says in said and len(said.splitlines()) == 1
