"""The sentences and tables of a model card: how to ask the model, its figures, where it comes from. Torch-free.

A figure never travels alone: the machine, the versions and the number of samples stand beside it. What nobody measured
is left out.

Place in the pipeline: card.py -> `part_of`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lrkit.errors import one_line
from lrkit.publish.card_facts import Facts

_PLAIN = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

name = "{repo}"
model = AutoModelForImageTextToText.from_pretrained(name)
processor = AutoProcessor.from_pretrained(name)
inputs = processor(images=[picture], text=prompt, return_tensors="pt")  # the prompt as prompt.json has it
found = model.generate(
    **inputs, custom_generate=name, trust_remote_code=True, {place}return_dict_in_generate=True
)
print(processor.decode(found.sequences[0]), found.latent_steps)"""
_SDK = """\
from lrkit import Reasoner

answer = Reasoner.from_pretrained("{repo}").ask("photo.jpg", "How many cups are left?")
print(answer, answer.latent_steps, answer.ar_steps)"""


def part_of(facts: Facts) -> str:
    """Markdown, without the marks around it."""
    sections = [
        _what(facts),
        *_how_to_ask(facts),
        *_figures(facts),
        *_profiles(facts),
        *_validation(facts),
        *_origin(facts),
    ]
    return "\n\n".join(sections)


def _what(facts: Facts) -> str:
    thing = "A bundle of [lrkit](https://github.com/lrkit/lrkit): one ONNX program, which runs without torch"
    if facts.kind == "checkpoint":
        thing = "A vision-language model of [lrkit](https://github.com/lrkit/lrkit)"
        thing += ": a LoRA adapter and what stands beside it" if facts.adapter else ""
    reasons = (
        "It reasons in latent steps: hidden states that are fed back, in place of words." if facts.has_latents else ""
    )
    return f"{thing}. {reasons}".rstrip()


def _how_to_ask(facts: Facts) -> Iterator[str]:
    yield "## Ask it"
    yield _code(_SDK.format(repo=facts.repo_id))
    if facts.kind == "checkpoint" and facts.has_latents:
        place = "checkpoint=name, " if facts.adapter else ""
        yield "In plain transformers, where `custom_generate/generate.py` takes the latent steps:"
        yield _code(_PLAIN.format(repo=facts.repo_id, place=place))
        yield (
            '`mode="cot"` answers in words, `mode="direct"` with the bare answer. The file is code of this repository: '
            "read it before you trust it."
        )


def _figures(facts: Facts) -> Iterator[str]:
    for report in facts.reports:
        if report.get("kind") != "eval":
            continue
        rows: list[list[str]] = []
        for name, figures in items(report.get("sets")):
            for mode, values in items(figures.get("modes")):
                low, high = values.get("accuracy_low"), values.get("accuracy_high")
                interval = f" ({_share(low)}-{_share(high)})" if low is not None and high is not None else ""
                seconds = values.get("latency_sec_median")
                median = f"{1000 * seconds:.1f}" if isinstance(seconds, int | float) else ""
                rows.append(
                    [f"`{one_line(name, 60)}`", mode, f"{_share(values.get('accuracy'))}%{interval}",
                     _number(values.get("samples")), _number(values.get("ar_steps_mean")), median]
                )  # fmt: skip
        head = ["pictures", "mode", "right (95%)", "samples", "autoregressive steps", "median ms"]
        yield "## Figures"
        yield _table(head, rows)
        yield f"`lrkit eval`, {_where(report.get('runs_on'))}; {_versions(report)}."


def _profiles(facts: Facts) -> Iterator[str]:
    for report in facts.reports:
        if report.get("kind") != "profile":
            continue
        rows = [
            [name, _number(values.get("mean_ms")), _number(values.get("median_ms")), _number(values.get("p95_ms")),
             _number(values.get("ar_steps")), _number(values.get("rss_peak_mb"))]
            for name, values in items(report.get("figures")) if "mean_ms" in values
        ]  # fmt: skip
        models = report.get("models")
        model = models[0] if isinstance(models, list) and models and isinstance(models[0], Mapping) else {}
        yield "## Profile"
        if headline := report.get("headline"):
            yield one_line(str(headline), 400)
        yield _table(["run", "mean ms", "median ms", "p95 ms", "autoregressive steps", "peak MB"], rows)
        kept = {key: model.get(key) for key in ("engine", "device", "precision", "threads")}
        yield f"`lrkit profile`, {_where(kept)}; {_versions(report)}."


def _validation(facts: Facts) -> Iterator[str]:
    found = facts.told.get("validation") if facts.kind == "bundle" else None
    for role, record in items(found):
        yield (
            f"The {role} program was compared with torch on {_number(record.get('num_samples'))} samples: "
            f"{'passed' if record.get('passed') else 'failed'}; bundle.json holds what was allowed and found."
        )


def _origin(facts: Facts) -> Iterator[str]:
    provenance, stage = facts.provenance, facts.told.get("stage")
    recipe = provenance.get("recipe") if isinstance(provenance.get("recipe"), Mapping) else {}
    rows = [
        ("base", facts.base), ("recipe", recipe.get("name") if recipe else None),
        ("stage", stage.get("name") if isinstance(stage, Mapping) else stage),
        ("updates of the stage", stage.get("updates") if isinstance(stage, Mapping) else None),
        ("made from", provenance.get("checkpoint")), ("lrkit", provenance.get("lrkit")),
        ("commit", provenance.get("git_commit")), ("time", provenance.get("time_utc")),
        ("packages", _packages(provenance)),
    ]  # fmt: skip
    known = [[name, one_line(str(value), 200)] for name, value in rows if value not in (None, "")]
    if known:
        yield "## Where it comes from"
        yield _table(["", ""], known)


def _versions(report: Mapping[str, Any]) -> str:
    provenance = report.get("provenance")
    if not isinstance(provenance, Mapping):
        return "versions unknown"
    told = [
        provenance.get("cpu"),
        f"lrkit {provenance.get('lrkit')}",
        _packages(provenance),
        provenance.get("time_utc"),
    ]
    return ", ".join(one_line(str(one), 200) for one in told if one)


def _packages(provenance: Mapping[str, Any]) -> str:
    wanted = ("torch", "transformers", "onnxruntime")
    found = dict(items(provenance.get("packages"), of=object))
    return ", ".join(f"{name} {found[name]}" for name in wanted if found.get(name))


def _where(runs_on: Any) -> str:
    named = [f"{key} {value}" for key, value in items(runs_on, of=object) if value is not None]
    return one_line(", ".join(named), 200) or "place unknown"


def items(value: Any, of: type = Mapping) -> Iterator[tuple[str, Any]]:
    """The entries of a mapping that hold mappings (or `of`); none where it is none: reports may be strangers' files."""
    if isinstance(value, Mapping):
        yield from ((str(key), one) for key, one in value.items() if isinstance(one, of))


def _share(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, int | float) else "?"


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
