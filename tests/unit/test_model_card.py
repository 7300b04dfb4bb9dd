"""The model card: front matter and figures from what is known; what a hand has written stays, whatever comes after."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from lrkit.errors import UserError
from lrkit.publish.card import BEGIN, END, is_unfilled_card, write_card
from lrkit.publish.card_facts import Facts, facts_of

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "profiles" / "reports"
TOLD = json.loads((ROOT / "lrkit" / "assets" / "tiny" / "latent" / "reasoner.json").read_text())
PEFT = ModelCard.from_template(ModelCardData(library_name="peft", tags=["lora", "base_model:adapter:../base"]))
PEFT_CARD = f"{PEFT.content}\n### Framework versions\n\n- PEFT 0.21.2\n"


def facts(tmp_path: Path, *reports: Path, **told: Any) -> Facts:
    return facts_of("me/rooms", "checkpoint", {**TOLD, **told}, tmp_path, reports, "apache-2.0")


def front(card: str) -> dict[str, Any]:
    return ModelCard(card).data.to_dict()


def test_a_new_card_says_what_is_known(tmp_path: Path) -> None:
    card = write_card(facts(tmp_path, base="owner/base"), None)
    data = front(card)
    assert (data["library_name"], data["base_model"], data["license"]) == ("peft", "owner/base", "apache-2.0")
    assert data["pipeline_tag"] == "image-text-to-text" and {"lrkit", "lora", "custom_generate"} <= {*data["tags"]}
    assert "model-index" not in data and "## Figures" not in card
    assert "custom_generate=name, trust_remote_code=True, checkpoint=name" in card
    for known in ("trail-latent", "3fc7d128861072e8c90cda1c3fac2b9b7ae00ccd", "torch 2.13.0+cpu"):
        assert known in card


@pytest.mark.parametrize(("init", "base"), [("hub:owner/base", "owner/base"), ("runs/mine", None), ("tiny/base", None)])
def test_a_folder_that_training_began_from_is_no_model_of_the_hub(tmp_path: Path, init: str, base: str | None) -> None:
    """Of a whole model, which names no base: runs/mine has the form of a hub's name."""
    recipe = {**TOLD["provenance"]["recipe"], "init": init}
    card = write_card(facts(tmp_path, base=None, provenance={**TOLD["provenance"], "recipe": recipe}), None)
    assert front(card).get("base_model") == base


def test_figures_come_with_their_samples_machine_and_versions(tmp_path: Path) -> None:
    card = write_card(facts(tmp_path, REPORTS / "tiny-eval.json", REPORTS / "tiny-int4-cpu.json"), None)
    (results,) = front(card)["model-index"]
    assert results["name"] == "rooms"
    found = {
        (one["dataset"]["name"], metric["config"], metric["type"]): metric["value"]
        for one in results["results"]
        for metric in one["metrics"]
    }
    assert found["trail:main", "latent", "accuracy"] == 0.992
    assert found["trail:main", "cot", "autoregressive-steps"] == 105.5
    assert "| `trail:main` | latent | 99.2% (98.4-99.6) | 1000 | 4.5 | 24.9 |" in card
    assert "AMD EPYC, lrkit 0.1.0, torch 2.13.0+cpu" in card
    assert "| latent | 3.2 | 3.2 | 4.2 | 4.5 |" in card and "engine onnxruntime, device cpu, precision int4" in card


def test_a_report_beside_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_bytes((REPORTS / "tiny-eval.json").read_bytes())
    assert "## Figures" in write_card(facts(tmp_path), None)


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UserError, match=r"mine\.json is no report of a model; give what `lrkit eval --json`"):
        facts(tmp_path, tmp_path / "mine.json")


def test_what_a_hand_has_written_stays_and_the_part_between_the_marks_is_new(tmp_path: Path) -> None:
    mine = "---\nlicense: mit\ntags:\n- mine\nlanguage: en\n---\n# My rooms\n\nWritten by hand.\n"
    once = write_card(facts(tmp_path), mine)
    assert "# My rooms\n\nWritten by hand.\n" in once and once.count(BEGIN) == once.count(END) == 1
    assert front(once)["license"] == "mit" and front(once)["tags"][0] == "mine" and "lrkit" in front(once)["tags"]
    edited = once.replace("Written by hand.", "Written better.") + "\nAnd a last word.\n"
    twice = write_card(facts(tmp_path, REPORTS / "tiny-eval.json"), edited)
    assert "Written better." in twice and twice.rstrip().endswith("And a last word.")
    assert twice.count(BEGIN) == 1 and "## Figures" in twice and front(twice)["language"] == "en"


def test_figures_of_others_stay_and_those_of_this_model_are_replaced(tmp_path: Path) -> None:
    first = write_card(facts(tmp_path, REPORTS / "tiny-eval.json"), None)
    data = front(first)
    other = {"name": "other", "results": data["model-index"][0]["results"][:1]}
    kept = first.replace("model-index:\n", f"model-index:\n- {json.dumps(other)}\n")
    again = write_card(facts(tmp_path, REPORTS / "tiny-eval.json"), kept)
    assert [one["name"] for one in yaml.safe_load(again.split("---\n")[1])["model-index"]] == ["other", "rooms"]


def test_the_empty_card_of_peft_gives_its_front_matter_and_no_empty_section(tmp_path: Path) -> None:
    assert is_unfilled_card(PEFT_CARD)
    card = write_card(facts(tmp_path, base="owner/base"), PEFT_CARD)
    assert front(card)["library_name"] == "peft" and "lora" in front(card)["tags"]
    assert "More Information Needed" not in card and "base_model:adapter:../base" not in card


def test_a_card_of_peft_that_somebody_filled_in_is_a_hands(tmp_path: Path) -> None:
    filled = PEFT_CARD.replace("- **License:** [More Information Needed]", "- **License:** ask me")
    assert not is_unfilled_card(filled)
    card = write_card(facts(tmp_path, base="owner/base"), filled)
    assert "- **License:** ask me" in card and "More Information Needed" in card and BEGIN in card


def test_a_folder_is_no_base_and_an_adapter_that_was_added_is_none(tmp_path: Path) -> None:
    mine = "---\nbase_model: ../base\nlibrary_name: peft\n---\nBy hand.\n"
    data = front(write_card(facts(tmp_path, base=None), mine))
    assert data["library_name"] == "transformers" and "base_model" not in data


def test_front_matter_that_is_no_yaml_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the front matter of README\.md"):
        write_card(facts(tmp_path), "---\ntags: [\n---\nmine\n")
