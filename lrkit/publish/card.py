"""The model card: README.md with front matter, from provenance, evaluation and profile, whichever are there.
Torch-free.

What a hand has written is kept. lrkit's own part stands between two marks, and a later push replaces that part alone;
a card without marks gets it at the end. Of the front matter the keys that are there stay as they are, tags are joined,
and figures under this model's name are replaced. The card that peft writes beside an adapter is no hand's while nobody
has filled it in: its front matter is kept, and its empty sections give way.

Place in the pipeline: push.py -> `write_card`; the sentences of the part itself: card_part.py.
"""

import re
from collections.abc import Mapping
from typing import Any

from lrkit.pretrained import is_hub_id
from lrkit.publish.card_facts import Facts
from lrkit.publish.card_part import items, part_of
from lrkit.publish.told import hub_package
from lrkit.strict_yaml import parse_yaml

BEGIN = "<!-- lrkit: begin. Written by lrkit; what stands outside these marks is kept. -->"
END = "<!-- lrkit: end -->"
_PART = re.compile(r"<!-- lrkit: begin.*?<!-- lrkit: end -->", re.DOTALL)
_FRONT = re.compile(r"---[ \t]*\n(.*?\n)?---[ \t]*\n?(.*)", re.DOTALL)
_ADAPTER_TAG = "base_model:adapter:"
_PIPELINE = "image-text-to-text"


def write_card(facts: Facts, before: str | None) -> str:
    """The card. `before` is the one that is there already; None where there is none.

    Raises:
        ConfigError: the front matter of `before` is no YAML, or no plain one.
    """
    ours, part = _front_matter(facts), f"{BEGIN}\n\n{part_of(facts)}\n\n{END}"
    if before is None:
        return _joined(ours, f"# {facts.name}\n\n{part}\n")
    theirs, body = _taken_apart(before)
    if _is_unfilled(body):
        kept = _of_peft(theirs) if facts.adapter else {}
        return _joined(_merged(ours, kept), f"# {facts.name}\n\n{part}\n")
    theirs = {key: value for key, value in theirs.items() if not _is_outdated(key, value, facts)}
    if _PART.search(body):
        return _joined(_merged(ours, theirs), _PART.sub(lambda _: part, body, count=1))
    return _joined(_merged(ours, theirs), f"{body.rstrip()}\n\n{part}\n")


def is_unfilled_card(text: str) -> bool:
    """Whether it is the card that peft writes, and nobody has written in it."""
    return _is_unfilled(_taken_apart(text)[1])


def _front_matter(facts: Facts) -> dict[str, Any]:
    hub = hub_package()
    library = "lrkit" if facts.kind == "bundle" else "peft" if facts.adapter else "transformers"
    tags = ["lrkit"]
    if facts.has_latents:
        tags.append("latent-reasoning")
        tags += ["custom_generate"] if facts.kind == "checkpoint" else []
    tags += ["onnx"] if facts.kind == "bundle" else ["lora"] if facts.adapter else []
    results = [result for report in facts.reports for result in _results(report, hub)]
    data = hub.ModelCardData(
        library_name=library,
        base_model=facts.base,
        tags=tags,
        license=facts.license,
        datasets=list(facts.datasets) or None,
        pipeline_tag=_PIPELINE,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return data.to_dict()


def _results(report: Mapping[str, Any], hub: Any) -> list[Any]:
    """Accuracy and steps of each set and mode, as model-index has them."""
    if report.get("kind") != "eval":
        return []
    found: list[Any] = []
    for name, figures in items(report.get("sets")):
        for mode, values in items(figures.get("modes")):
            metrics = [("accuracy", values.get("accuracy")), ("autoregressive-steps", values.get("ar_steps_mean"))]
            for metric, value in metrics:
                if isinstance(value, int | float):
                    found.append(
                        hub.EvalResult(
                            task_type=_PIPELINE, dataset_type=_plain(name), dataset_name=name, metric_type=metric,
                            metric_name=f"{metric}, {mode}", metric_config=mode, metric_value=value,
                        )
                    )  # fmt: skip
    return found


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Theirs goes before ours, but for this model's figures; tags are joined."""
    merged = {**ours, **theirs}
    tags = [*_list(theirs.get("tags")), *_list(ours.get("tags"))]
    merged["tags"] = list(dict.fromkeys(str(tag) for tag in tags))
    names = [one["name"] for one in ours.get("model-index", [])]
    kept = [one for one in _list(theirs.get("model-index")) if not (isinstance(one, dict) and one.get("name") in names)]
    if figures := [*kept, *ours.get("model-index", [])]:
        merged["model-index"] = figures
    return merged


def _is_outdated(key: str, value: Any, facts: Facts) -> bool:
    """A base that is a folder, and what peft says where its adapter is in the weights."""
    if key == "library_name":
        return value == "peft" and not facts.adapter
    return key == "base_model" and not _are_hub_names(value)


def _of_peft(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What peft's card says of itself: never a folder as a base, and not that the model takes text alone."""
    kept = {key: value for key, value in theirs.items() if key not in ("pipeline_tag", "base_model")}
    if _are_hub_names(theirs.get("base_model")):
        kept["base_model"] = theirs["base_model"]
    kept["tags"] = [
        tag for tag in _list(theirs.get("tags")) if not str(tag).startswith(_ADAPTER_TAG) or _is_adapter_tag(tag)
    ]
    return kept


def _is_adapter_tag(tag: Any) -> bool:
    return is_hub_id(str(tag).removeprefix(_ADAPTER_TAG))


def _taken_apart(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and body. The package's own reader would forget whose the figures are."""
    found = _FRONT.match(text.replace("\r\n", "\n"))
    if found is None:
        return {}, text
    data = parse_yaml(found[1] or "", "the front matter of README.md")
    return data if isinstance(data, dict) else {}, found[2].lstrip("\n")


def _is_unfilled(body: str) -> bool:
    """Whether it is peft's card as peft wrote it: every line one of the template, or of peft's versions."""
    lines = {line.strip() for line in body.splitlines() if line.strip()}
    own = {line for line in lines if line.startswith("- PEFT ") or line == "### Framework versions"}
    return bool(own) and lines - own <= _template_lines()


def _template_lines() -> set[str]:
    hub = hub_package()
    try:
        text = hub.ModelCard.from_template(hub.ModelCardData()).text
    except ImportError:  # jinja2 makes cards from templates; without it nothing counts as empty
        return set()
    return {line.strip() for line in text.splitlines() if line.strip()}


def _joined(data: Mapping[str, Any], body: str) -> str:
    hub = hub_package()
    return f"---\n{hub.utils.yaml_dump(dict(data), sort_keys=False)}---\n\n{body}"


def _are_hub_names(value: Any) -> bool:
    return bool(value) and all(isinstance(one, str) and is_hub_id(one) for one in _list(value))


def _plain(name: str) -> str:
    """A data set as a word of front matter: `trail:main` -> `trail-main`."""
    return re.sub(r"[^\w./-]+", "-", name).strip("-") or "data"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
