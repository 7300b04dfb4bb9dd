"""A bundle on ONNX Runtime: the answers of torch, limits before any run, shared sessions, errors with a cause."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from lrkit.contract.generated import MODES, Mode
from lrkit.data.trail import trail_set
from lrkit.errors import BundleError, CapacityError, UnknownNameError, UserError
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.engines.common.protocol import AskOptions
from lrkit.runtime.engines.onnxruntime.device_value import DeviceValue, run_bound
from lrkit.runtime.engines.onnxruntime.engine import OrtEngine
from lrkit.runtime.engines.onnxruntime.providers import available_providers, choose_provider
from lrkit.runtime.engines.programs.step_session import StepSession
from lrkit.runtime.sdk import Reasoner
from tests.bundles import CAPACITY, MAX_NEW_TOKENS, QUESTION, picture, torch_reasoner
from tests.hostile import resign
from tests.tiny import PATCH


@pytest.fixture(scope="module")
def reasoner(bundle: Path) -> Reasoner:
    return Reasoner.load(bundle, threads=1)


def engine_of(reasoner: Reasoner) -> OrtEngine:
    assert isinstance(reasoner.engine, OrtEngine)
    return reasoner.engine


def facts(answer: Answer) -> dict[str, object]:
    """Everything but seconds and the name of the number type, and shares without their last digits."""
    values = answer.to_dict() | {"timings": None, "dtype": None}
    for step in values["regions"]:
        for region in step:
            region |= {key: round(value, 3) for key, value in region.items() if isinstance(value, float)}
    return values


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_those_of_torch(reasoner: Reasoner, mode: Mode) -> None:
    engine = torch_reasoner()
    for sample in trail_set("main", "test", 3):
        expected = engine.ask(sample.images, sample.question, mode, max_new_tokens=MAX_NEW_TOKENS)
        assert facts(reasoner.ask(sample.images, sample.question, mode)) == facts(expected)
    assert expected.latent_steps == (3 if mode == "latent" else 0)


def test_without_a_picture(reasoner: Reasoner) -> None:
    expected = torch_reasoner().ask(None, QUESTION, max_new_tokens=MAX_NEW_TOKENS)
    answer = reasoner.ask(None, QUESTION)
    assert facts(answer) == facts(expected)
    assert answer.replayed_tokens == 0


@pytest.mark.parametrize(("halting", "latents"), [("fixed", 0), ("fixed", 2), ("adaptive", 3), ("adaptive", None)])
def test_halting_and_latent_steps_as_asked(reasoner: Reasoner, halting: str, latents: int | None) -> None:
    how = {"halting": halting, "max_latent_steps": latents}
    expected = torch_reasoner().ask(picture(1), QUESTION, max_new_tokens=2, **how)
    assert facts(reasoner.ask(picture(1), QUESTION, max_new_tokens=2, **how)) == facts(expected)
    assert halting == "adaptive" or expected.latent_steps == latents


def test_baselines_are_programs_of_the_same_bundle(reasoner: Reasoner) -> None:
    spoken = reasoner.baseline("cot")
    assert engine_of(spoken).role == "cot" and reasoner.baseline("latent") is reasoner
    assert reasoner.baseline("direct") is reasoner, "the bundle has no program for it: the latent one answers"
    expected = torch_reasoner("cot").ask(picture(), QUESTION, "cot", max_new_tokens=MAX_NEW_TOKENS)
    assert facts(spoken.ask(picture(), QUESTION, "cot")) == facts(expected)
    assert expected.depths == (0, 0, 0, 0)


def test_a_batch_is_its_prompts_one_by_one(reasoner: Reasoner) -> None:
    pairs = [(picture(0), QUESTION), (None, QUESTION), (picture(1), "Read the signs.")]
    assert [facts(a) for a in reasoner.ask_batch(pairs)] == [facts(reasoner.ask(*pair)) for pair in pairs]
    assert reasoner.ask_batch([]) == []


def test_what_is_streamed_is_the_whole_text(reasoner: Reasoner) -> None:
    pieces: list[str] = []
    answer = reasoner.ask(picture(), QUESTION, on_text=pieces.append)
    assert "".join(pieces).strip() == answer.text != ""


def test_on_token_gets_every_sample_of_a_batch(reasoner: Reasoner) -> None:
    engine = engine_of(reasoner)
    prompts = [engine.processor.encode_prompt([picture(number)], QUESTION) for number in (0, 1)]
    rows: list[list[int | None]] = []
    results = engine.generate(prompts, AskOptions(), rows.append)
    columns = [[token for token in column if token is not None] for column in zip(*rows, strict=True)]
    assert columns == [result.token_ids for result in results]


OVER: dict[str, tuple[dict, str]] = {
    "pictures": ({"image": [picture()] * 3}, "has 3 pictures, above the bundle's limit max_images of 2"),
    "tokens": ({"question": "Read the signs. " * 30}, "above the bundle's limit max_prompt_tokens of 120"),
    "speech": ({"max_new_tokens": 7}, "max_new_tokens is 7, above the bundle's limit of 6"),
    "latents": ({"max_latent_steps": 4}, "max_latent_steps is 4, above the bundle's limit of 3"),
}


@pytest.mark.parametrize("what", OVER)
def test_a_limit_is_named_before_any_program_is_loaded(bundle: Path, what: str) -> None:
    asked, expected = OVER[what]
    reasoner = Reasoner.open(bundle)
    with pytest.raises(CapacityError) as caught:
        reasoner.ask(**{"image": picture(), "question": QUESTION, **asked})
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert engine_of(reasoner).sessions.loaded == ()


def test_pictures_of_a_prompt_with_too_many_are_not_even_opened(reasoner: Reasoner, tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match="max_images"):
        reasoner.ask([tmp_path / "missing.png"] * 3, QUESTION)


def test_pictures_above_the_patch_limit_are_shrunk_and_the_answer_says_so(reasoner: Reasoner) -> None:
    """Two boards have 320 patches where the bundle takes 200; before, they were refused."""
    plain = reasoner.ask(picture(), QUESTION)
    assert plain.resized == () and plain.to_dict()["resized"] == []
    answer = reasoner.ask([picture(), picture(3)], QUESTION)
    assert [one.image for one in answer.resized] == [0, 1]
    assert all(one.original == (80, 32) and one.limit == "max_patches" for one in answer.resized)
    used = [one.used for one in answer.resized]
    assert 160 <= sum(width * height // PATCH**2 for width, height in used) <= CAPACITY["max_patches"]
    written = json.loads(json.dumps(answer.to_dict()))["resized"]
    assert written[0] == {"image": 0, "original": [80, 32], "used": list(used[0]), "limit": "max_patches"}
    # Boxes stay in pixels of the picture as it was given.
    boxes = [region.box for step in answer.regions for region in step]
    assert boxes and all(0 <= left < right <= 80 and 0 <= top < low <= 32 for left, top, right, low in boxes)


def test_a_picture_is_shrunk_for_the_prompt_tokens_in_every_mode(reasoner: Reasoner) -> None:
    """A long question leaves little room: 40 visual tokens fit the patches, but no longer the prompt."""
    question = "Read the signs. " * 24
    latent, direct = (reasoner.baseline(mode).ask(picture(), question, mode) for mode in ("latent", "direct"))
    assert latent.resized and latent.resized == direct.resized
    assert latent.resized[0].limit == "max_prompt_tokens"
    assert direct.prefilled_tokens <= CAPACITY["max_prompt_tokens"]


def test_max_pixels_of_one_question_holds_for_bundle_and_checkpoint_alike(reasoner: Reasoner) -> None:
    how = {"max_pixels": 1000, "max_new_tokens": MAX_NEW_TOKENS}
    asked = [asked.ask(picture(), QUESTION, **how) for asked in (reasoner, torch_reasoner())]
    assert asked[0].resized == asked[1].resized and asked[0].text == asked[1].text
    width, height = asked[0].resized[0].used
    assert width * height <= 1000 and asked[0].resized[0].limit == "max_pixels"
    with pytest.raises(UserError, match="max_pixels is 63; a visual token of this model has 8 x 8 pixels"):
        reasoner.ask(picture(), QUESTION, max_pixels=63)


def test_the_answer_marker_counts_in_direct_mode(bundle: Path) -> None:
    engine = OrtEngine.from_bundle(bundle)
    engine.processor.limits = None  # what is given to the engine directly is checked too
    words = CAPACITY["max_prompt_tokens"]
    prompt = engine.processor.encode_prompt([], "Read " * words)
    assert len(prompt.ids) == words
    with pytest.raises(CapacityError, match=f"the prompt has {words + 1} tokens"):
        engine.generate([prompt], AskOptions(mode="direct"))


def test_eight_threads_get_the_answers_of_one(bundle: Path) -> None:
    reasoner = Reasoner.open(bundle, threads=1)
    samples = trail_set("main", "test", 12)
    started = threading.Barrier(8)

    def ask_all(number: int) -> list[dict[str, object]]:
        started.wait()
        order = samples[number:] + samples[:number]
        found = {sample.id: facts(reasoner.ask(sample.images, sample.question)) for sample in order}
        return [found[sample.id] for sample in samples]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask_all, range(8)))
    alone = [facts(reasoner.ask(sample.images, sample.question)) for sample in samples]
    assert results == [alone] * 8


def test_a_session_is_made_once_per_role(bundle: Path) -> None:
    sessions = OrtEngine.from_bundle(bundle).sessions
    started = threading.Barrier(8)

    def get(number: int) -> object:
        started.wait()
        return sessions.of("latent" if number % 2 else "cot")

    assert sessions.loaded == ()
    with ThreadPoolExecutor(8) as pool:
        assert len({id(session) for session in pool.map(get, range(8))}) == 2
    assert set(sessions.loaded) == {"latent", "cot"}


def test_providers_are_named() -> None:
    assert available_providers()[0] == "cpu"
    assert choose_provider("cpu") == ["CPUExecutionProvider"]
    with pytest.raises(UnknownNameError, match=r"unknown provider 'cudda'; this machine has cpu.*did you mean 'cuda'"):
        choose_provider("cudda")
    with pytest.raises(UserError, match="has no device '0'"):
        choose_provider("cpu:0")
    with pytest.raises(UserError, match="has no device 'x'"):
        choose_provider("cuda:x")


def test_a_provider_is_given_with_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    assert choose_provider("cuda:1") == [("CUDAExecutionProvider", {"device_id": "1"}), "CPUExecutionProvider"]
    assert choose_provider("cuda") == offered


@pytest.mark.skipif("cuda" in available_providers(), reason="this onnxruntime has cuda")
def test_a_provider_that_is_not_installed(bundle: Path) -> None:
    with pytest.raises(UserError, match=r'which has cpu.*pip install "lrkit\[gpu\]"'):
        Reasoner.load(bundle, provider="cuda")


def test_threads_and_session_entries(bundle: Path) -> None:
    with pytest.raises(UserError, match="threads is 0"):
        Reasoner.load(bundle, threads=0)
    quiet = Reasoner.load(bundle, threads=2, session_config={"session.intra_op.allow_spinning": "0"})
    options = engine_of(quiet).sessions.of("latent").get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_damaged_program_is_one_sentence(own_bundle: Path) -> None:
    path = own_bundle / "latent.onnx"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(BundleError, match=r"latent.onnx: is no ONNX file \(.*\); copy the bundle again") as caught:
        Reasoner.load(own_bundle, verify=False)
    assert "\n" not in str(caught.value)


def test_a_program_other_than_declared(own_bundle: Path) -> None:
    shutil.copyfile(own_bundle / "latent.onnx", own_bundle / "cot.onnx")
    resign(own_bundle)
    with pytest.raises(BundleError, match=r"cot.onnx: is not the program that bundle.json declares \(the inputs are"):
        Reasoner.open(own_bundle).baseline("cot").prepare()


@pytest.mark.parametrize("mode", MODES)
def test_the_step_form_answers_alike(reasoner: Reasoner, step_bundle: Path, mode: Mode) -> None:
    stepped = Reasoner.load(step_bundle, threads=1)
    for image in (picture(), None):
        assert facts(stepped.ask(image, QUESTION, mode)) == facts(reasoner.ask(image, QUESTION, mode))


def test_the_step_form_streams_while_it_speaks(step_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = Reasoner.load(step_bundle, threads=1)
    engine = engine_of(reasoner)
    steps: list[str] = []
    run_step = StepSession._step

    def counted(self: StepSession, name: str, *rest: object) -> object:
        steps.append(name)
        return run_step(self, name, *rest)

    monkeypatch.setattr(StepSession, "_step", counted)
    fed: list[int] = []
    prompt = engine.processor.encode_prompt([picture()], QUESTION)
    (told,) = engine.generate([prompt], AskOptions(), lambda tokens: fed.append(steps.count("speak")))
    assert steps[:4] == ["prompt", "think", "think", "think"]
    assert fed == list(range(len(told.token_ids))), "each token is out before the next is computed"
    pieces: list[str] = []
    answer = reasoner.ask(picture(), QUESTION, on_text=pieces.append)
    assert "".join(pieces).strip() == answer.text != ""


def test_a_form_without_its_graphs(own_bundle: Path) -> None:
    path = own_bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    manifest["programs"]["latent"]["spec"]["form"] = "step"
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="gives the latent program the form step and 0 steps"):
        Reasoner.load(own_bundle)


def test_open_takes_both_and_refuses_options_of_the_other_kind(bundle: Path) -> None:
    assert Reasoner.open(str(bundle), threads=1).engine.name == "onnxruntime"
    with pytest.raises(UserError, match="is a bundle, and device is for checkpoints"):
        Reasoner.open(bundle, device="cuda")
    with pytest.raises(UserError, match="is no bundle, and provider and threads are for bundles"):
        Reasoner.open("tiny", provider="cpu")


def test_a_prompt_is_not_altered(reasoner: Reasoner) -> None:
    engine = engine_of(reasoner)
    prompt = engine.processor.encode_prompt([picture()], QUESTION)
    before = replace(prompt, ids=list(prompt.ids))
    engine.generate([prompt], AskOptions(mode="direct"))
    assert prompt.ids == before.ids


def test_between_steps_the_state_stays_where_it_is(step_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose place the memory of this process takes: only what the host decides by is fetched."""
    seen: list[tuple[set[str], set[str]]] = []

    def watched(session, device, names, feed, options):
        kept = {name for name, value in feed.items() if isinstance(value, DeviceValue)}
        seen.append((kept, set(feed) - kept))
        return run_bound(session, device, names, feed, options)

    monkeypatch.setattr("lrkit.runtime.engines.onnxruntime.session.run_bound", watched)
    plain, engine = Reasoner.load(step_bundle, threads=1), OrtEngine.from_bundle(step_bundle, threads=1)
    engine.sessions.device = "cpu", 0
    bound = Reasoner(engine)
    for shown in (picture(1), None):
        assert facts(bound.ask(shown, QUESTION)) == facts(plain.ask(shown, QUESTION))
    prompt, first, second, *_, spoken = (kept for kept, _ in seen[: len(seen) // 2])
    assert not prompt and {"hidden", "saliency", "free", "prompt_key0"} <= first
    assert {"key0", "value3", "latent_states"} <= second - first
    assert {"token", "key0", "latent_key0", "prompt_key0"} <= spoken and not seen[len(seen) // 2 - 1][1]
