"""lmms-eval runs a task of its own kind, offline, with lrkit as the model: its accuracy is that of `lrkit eval`."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrkit.contract.choosing import Choices
from lrkit.contract.sample import Sample
from lrkit.data.sources import load_samples
from lrkit.evaluate.evaluation import EvalOptions, evaluate
from lrkit.runtime.sdk import Reasoner
from tests.commands import lrkit
from tests.lmms_eval_place import ROOT, make_place

pytestmark = pytest.mark.long
COUNT = 24
UTILS = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(path) for path in doc["images"]]

def process_results(doc, results):
    return {"accuracy": float(results[0].strip() == doc["answer"])}
"""
VISUAL = "doc_to_visual: !function utils.doc_to_visual\n"
RESULTS = "process_results: !function utils.process_results\n"
TASK: dict[str, Any] = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"max_new_tokens": 64, "do_sample": False, "temperature": 0},
    "metric_list": [{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
    "metadata": [{"version": 1}],
}


def write_task(folder: Path, name: str, samples: list[Sample], functions: str = "", **changed: Any) -> None:
    """A task folder as lmms-eval's own: YAML, functions, and here its data too."""
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        paths = [folder / f"{name}-{number}-{place}.png" for place in range(len(sample.images))]
        for path, image in zip(paths, sample.images, strict=True):
            image.save(path)  # pyright: ignore
        rows.append({"images": [str(path) for path in paths], "question": sample.question, "answer": sample.answer})
    (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "utils.py").write_text(UTILS, encoding="utf-8")
    data = {"data_files": {"test": str(folder / f"{name}.json")}}
    given = {"task": name, "dataset_kwargs": data, **TASK, **changed}
    values = yaml.safe_dump({key: value for key, value in given.items() if value is not None})
    (folder / f"{name}.yaml").write_text(values + (functions or VISUAL + RESULTS), encoding="utf-8")


def write_tasks(folder: Path, samples: list[Sample]) -> None:
    """One picture; two pictures; a way to generate that is refused; scored continuations."""
    two = [replace(sample, images=(*sample.images, *sample.images)) for sample in samples[:2]]
    write_task(folder, "rooms", samples)
    write_task(folder, "pairs", two)
    write_task(folder, "drawn", two, generation_kwargs={"do_sample": True, "temperature": 0.7})
    among: dict[str, Any] = {"output_type": "multiple_choice", "doc_to_choice": list("0123456789")}
    among |= {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
    write_task(folder, "picked", samples[:8], generation_kwargs=None, functions=VISUAL, target_delimiter=" ", **among)


def run(python: Path, folder: Path, runs: list[dict[str, Any]]) -> str:
    """Several evaluations in one process, by lmms-eval's own command line."""
    (folder / "runs.yaml").write_text(yaml.safe_dump(runs), encoding="utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [python, "-m", "lmms_eval", "--config", folder / "runs.yaml", "--verbosity", "WARNING"],
        env={**os.environ, **offline, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def results_of(folder: Path, run_name: str) -> dict[str, Any]:
    # Not beside the process: lmms-eval takes a task for a folder where one of that name is there.
    (found,) = (folder / "out" / run_name).rglob("*_results.json")
    return json.loads(found.read_text(encoding="utf-8"))


def test_a_checkpoint_and_a_bundle_score_as_lrkit_scores_them(tmp_path: Path) -> None:
    python = make_place(tmp_path / "place")
    samples = load_samples("trail:main", COUNT, seed=1)
    bundle = tmp_path / "int4"
    cheap = "--no-baselines", "--samples", 2, "--allow-unproven"
    assert lrkit("export", "tiny", "--int4", *cheap, "-o", bundle) == 0
    tasks = tmp_path / "tasks"
    write_tasks(tasks, samples)
    cases = {
        "latent": (f"pretrained=tiny,mode=latent,threads=1,answers={tmp_path / 'answers.jsonl'}", "rooms,pairs"),
        "direct": ("pretrained=tiny,mode=direct", "rooms"),
        "cot": ("pretrained=tiny,mode=cot,reply=answer", "rooms"),
        "int4": (f"pretrained={bundle},mode=latent,threads=1", "rooms,pairs"),
        "drawn": ("pretrained=tiny", "drawn"),
        "picked": ("pretrained=tiny,mode=direct", "picked"),
        "unpicked": (f"pretrained={bundle},mode=latent", "picked"),
    }
    given = {"model": "lrkit", "include_path": str(tasks), "log_samples": True, "batch_size": "8"}
    said = run(
        python,
        tmp_path,
        [
            {**given, "model_args": args, "tasks": asked, "output_path": str(tmp_path / "out" / name)}
            for name, (args, asked) in cases.items()
        ],
    )
    assert "the task 'drawn' asks for do_sample=True, and lrkit answers greedily" in " ".join(said.split())
    for name, model in (("latent", "tiny"), ("direct", "tiny"), ("cot", "tiny"), ("int4", bundle)):
        mode: Any = "latent" if name == "int4" else name
        own = evaluate(Reasoner.open(model), samples, EvalOptions((mode,), 8, 0, 64)).to_dict()["modes"][mode]
        found = results_of(tmp_path, name)
        assert found["results"]["rooms"]["accuracy,none"] == own["accuracy"], name
        if name in ("direct", "cot"):
            assert found["throughput"]["avg_ar_steps"] == pytest.approx(own["ar_steps_mean"])
    assert 0 < results_of(tmp_path, "direct")["results"]["rooms"]["accuracy,none"] < 1, "so that an equality says much"
    assert "the task 'picked' scores given continuations, and this bundle tells no probabilities" in " ".join(
        said.split()
    )
    _same_choices(tmp_path, samples[:8])
    _steps_and_latency(tmp_path)


def _same_choices(folder: Path, samples: list[Sample]) -> None:
    """lmms-eval takes the continuation that `Reasoner.ask` takes for the choice."""
    choices = Choices(tuple("0123456789"), "texts")
    asked = Reasoner.open("tiny").baseline("direct")
    right = [asked.ask(one.images, one.question, "direct", choices=choices).choice for one in samples]
    own = [choice is not None and choice.text == one.answer for choice, one in zip(right, samples, strict=True)]
    assert results_of(folder, "picked")["results"]["picked"]["acc,none"] == sum(own) / len(own)


def _steps_and_latency(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["task"] for line in lines] == ["rooms"] * COUNT + ["pairs"] * 2
    assert all(line["timings"]["total"] > 0 for line in lines)
    (logged,) = (folder / "out" / "latent").rglob("*_samples_rooms.jsonl")
    samples = [json.loads(line) for line in logged.read_text(encoding="utf-8").splitlines()]
    for sample in samples:
        (counts,) = sample["token_counts"]
        answer = lines[sample["doc_id"]]
        assert counts == {
            "input_tokens": answer["prefilled_tokens"],
            "output_tokens": answer["spoken_tokens"],
            "reasoning_tokens": answer["latent_steps"],
        }
    assert len({line["prefilled_tokens"] for line in lines[COUNT:]} & {lines[0]["prefilled_tokens"]}) == 0
