"""The SDK: `Reasoner` asks a model about pictures, whatever engine runs it. Importing it costs no torch.

    from lrkit import Reasoner

    reasoner = Reasoner.load("bundle")  # or Reasoner.from_checkpoint("tiny"), which takes torch
    answer = reasoner.ask("rooms.png", "Take 4 hops. Which room are you in? Start in room 3")
    print(answer, answer.latent_steps, answer.ar_steps)
    answer.save_trace("trace.png")

Place in the pipeline: Processor (encode/processor.py) -> an `Engine` (engines/table.py) -> `Answer` (answer/answer.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lrkit.checkpoints.trained_in import known_dtype
from lrkit.contract.attention import read_attention
from lrkit.contract.bundle.bundle_folder import is_bundle
from lrkit.contract.choosing import Choices
from lrkit.contract.generated import Mode
from lrkit.errors import UserError
from lrkit.pictures.input import ImageSource, as_pictures
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.answer.answering import Asked, Clock, answer_all, answer_each, check_mode
from lrkit.runtime.answer.arguments import (
    ask_options,
    callback,
    choices_of_each,
    file_path,
    flag,
    known_mode,
    model_path,
    question_pairs,
    question_text,
    text_or_none,
    texts,
    whole_number,
)
from lrkit.runtime.encode.candidates import encode_candidates
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.common.protocol import AskOptions, Engine
from lrkit.runtime.engines.common.stopping import CancelFlag, Stop
from lrkit.runtime.engines.table import EngineChoice, open_checkpoint, open_engine
from lrkit.runtime.scenes.look_store import LookStore
from lrkit.runtime.scenes.scene import Scene, look_at, open_scene

if TYPE_CHECKING:
    from lrkit.publish.push import Pushed

Images = ImageSource | Iterable[ImageSource] | None


class Reasoner:
    """A model that thinks in latent steps, ready to be asked."""

    source: Path | None = None
    """The folder that it was loaded from."""

    def __init__(self, engine: Engine, scene_bytes: int | None = None) -> None:
        """`scene_bytes` is the most memory for the states of scenes (None: 512 MiB): beyond it, those that were not
        asked longest are left, and such a scene looks again when it is asked."""
        self.engine = engine
        self.scenes = LookStore(whole_number("scene_bytes", scene_bytes, 0))

    @classmethod
    def load(
        cls,
        path: str | Path,
        provider: str | None = None,
        threads: int | None = None,
        verify: bool = True,
        session_config: Mapping[str, str] | None = None,
        engine: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
        provider_options: Mapping[str, str] | None = None,
        scene_bytes: int | None = None,
    ) -> "Reasoner":
        """Loads a bundle, a folder that `lrkit export` wrote. Several threads may share the result.

        `engine` is a name of lrkit/runtime/engines/table.py: onnxruntime, openvino, or tensorrt-rtx or tensorrt where
        the bundle has such engines; `engine_options` are its own (the row's class of options), as {"cache": True} of
        openvino, which keeps what it compiled for the next start. Those of ONNX Runtime may be given by name:
        `provider` is cpu, cuda, cuda:1, tensorrt, ...; `threads` those of one operator (None: as many as the process
        may use); `session_config` its own session entries, `provider_options` the provider's. `verify` compares every
        file with its SHA-256. `scene_bytes` is the most memory for scenes (None: 512 MiB).

        Raises:
            BundleError: no bundle, or one that is damaged, incomplete or of a later schema, or without such an engine.
            UserError: a provider or GPU that this machine lacks.
            MissingExtraError: the engine's package is not installed.
        """
        choice = _choice(engine, engine_options, provider, threads, session_config, provider_options)
        reasoner = cls(open_engine(model_path(path), choice, flag("verify", verify)), scene_bytes).prepare()
        return reasoner._of(path)

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: str | None = None,
        provider: str | None = None,
        threads: int | None = None,
        engine: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
        dtype: str | None = None,
        attention: str | Mapping[str, str] | None = None,
    ) -> "Reasoner":
        """Opens whatever `path` is: a bundle (`load`), or a checkpoint or shipped name such as `tiny`
        (`from_checkpoint`).

        A program is loaded at its first question, so that asking in one mode does not load the program of another.

        Raises:
            UserError: an option of the other kind; what `load` and `from_checkpoint` raise.
        """
        path, device, dtype = model_path(path), text_or_none("device", device), text_or_none("dtype", dtype)
        choice = _choice(engine, engine_options, provider, threads)
        if is_bundle(path):
            if device is not None:
                raise UserError(f"{path} is a bundle, and device is for checkpoints; give a provider instead")
            if known_dtype(dtype) is not None:
                raise UserError(
                    f"{path} is a bundle, and dtype is for checkpoints; export it with the precision wanted"
                )
            if attention is not None:
                raise UserError(f"{path} is a bundle, whose attention is in its program; leave attention out")
            return cls(open_engine(path, choice))._of(path)
        if provider is not None or threads is not None:
            raise UserError(f"{path} is no bundle, and provider and threads are for bundles; give a device instead")
        if engine is None and engine_options:
            raise UserError(f"{path} is no bundle, and an engine runs bundles; export it first, or leave engine out")
        kernels = None if attention is None else read_attention(attention).model_dump()
        chosen = EngineChoice.of(engine, choice.options, device=device, dtype=known_dtype(dtype), attention=kernels)
        folder = resolve_checkpoint(path)
        return cls(open_checkpoint(folder, chosen))._of(folder)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str | None = None,
        cuda_graphs: bool = False,
        allow_download: bool = False,
        attention: str | Mapping[str, str] | None = None,
        scene_bytes: int | None = None,
    ) -> "Reasoner":
        """Loads a checkpoint (a folder, or a shipped name such as `tiny`) on torch. A plain Hugging Face model answers
        in the modes cot and direct. A backbone that is named by a hub id is fetched only with `allow_download`.

        `dtype` is float32, bfloat16 or float16; None or "auto" is the type that its backbone was trained in.
        `cuda_graphs` records latent steps and words on a GPU and launches each as one. That is several times faster
        where questions of like length follow one another; the first of a length pays for the recording.
        `attention` names the kernels of attention as transformers does: sdpa (the default), flash_attention_2,
        flash_attention_3 or flash_attention_4, one for both parts or {"vision": ..., "text": ...}.
        `scene_bytes` is the most memory for scenes (None: 512 MiB).
        A process that is forked afterwards answers on one thread. Load in each process to use all, or run a bundle.

        Raises:
            CheckpointError: nothing usable there.
            UserError: an unknown device or dtype, CUDA graphs without a GPU, or kernels that cannot run there.
            MissingExtraError: torch is not installed.
        """
        folder = resolve_checkpoint(model_path(path))
        device, dtype = text_or_none("device", device) or "cpu", text_or_none("dtype", dtype)
        options = {"dtype": dtype, "cuda_graphs": flag("cuda_graphs", cuda_graphs)}
        options |= {"attention": read_attention(attention).model_dump()}
        options |= {"device": device, "allow_download": flag("allow_download", allow_download)}
        return cls(open_checkpoint(folder, EngineChoice(None, options)), scene_bytes)._of(folder)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **options: Any,
    ) -> "Reasoner":
        """Loads OWNER/NAME of the Hugging Face hub, or a folder: a bundle (`load`) or a checkpoint (`from_checkpoint`),
        whose arguments `options` are. Downloads through huggingface_hub and its cache; with `local_files_only`, or
        HF_HUB_OFFLINE in the environment, the cache alone is looked at. A bundle needs no torch.

        Raises:
            UserError: no such folder or repository, no access, nothing in the cache where the network may not be used,
                and what `load` and `from_checkpoint` raise.
        """
        from lrkit.publish.pull import pulled_folder

        folder = pulled_folder(
            model_path(name), revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only,
            force_download=force_download,
        )  # fmt: skip
        if is_bundle(folder):
            return cls.load(folder, **options)
        given: dict[str, Any] = {"allow_download": not local_files_only, **options}
        return cls.from_checkpoint(folder, **given)

    def push_to_hub(self, repo_id: str, **options: Any) -> "Pushed":
        """Publishes the folder that this was loaded from. `options` as `lrkit.push_to_hub` has them. Raises as that."""
        from lrkit.publish.push import push_to_hub

        return push_to_hub(self._folder(), repo_id, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Writes what `push_to_hub` would send. `options` as `lrkit.save_pretrained` has them. Raises as that."""
        from lrkit.publish.push import save_pretrained

        return save_pretrained(self._folder(), file_path("folder", folder), **options)

    def _of(self, folder: str | Path) -> "Reasoner":
        self.source = Path(folder)
        return self

    def _folder(self) -> Path:
        if self.source is None:
            raise UserError("this model was not loaded from a folder; publish the folder that holds it")
        return self.source

    @property
    def processor(self) -> Processor:
        """Tokenizer, image geometry and prompt format of the model."""
        return self.engine.processor

    def prepare(self) -> "Reasoner":
        """Loads now what the first question would load. Returns itself.

        Raises:
            BundleError: a program that cannot be loaded.
        """
        self.engine.load()
        return self

    def baseline(self, mode: Mode) -> "Reasoner":
        """Returns the model to ask in `mode`: the baseline that this checkpoint declares for it, or itself."""
        check_mode(self.engine, known_mode(mode))
        engine = None if mode == "latent" else self.engine.baseline(mode)
        return self if engine is None else Reasoner(engine, self.scenes.limit)

    def with_adapter(self, name: str) -> "Reasoner":
        """The same program with an adapter of `lrkit export --with-adapter NAME=CHECKPOINT` in place of its own. The
        weights are shared; looks are its own, because another adapter sees otherwise.

        Raises:
            UserError: there is none of that name, or this is no such bundle on ONNX Runtime.
        """
        return Reasoner(self.engine.with_adapter(text_or_none("adapter", name) or ""), self.scenes.limit)

    def ask(
        self,
        image: Images,
        question: str,
        mode: Mode = "latent",
        *,
        max_new_tokens: int | None = None,
        max_latent_steps: int | None = None,
        halting: Literal["adaptive", "fixed"] | None = None,
        max_pixels: int | None = None,
        timeout: float | None = None,
        cancel: CancelFlag | None = None,
        on_text: Callable[[str], None] | None = None,
        adapter: str | None = None,
        choices: Sequence[str] | Choices | None = None,
    ) -> Answer:
        """Answers one question about one picture, several, or none (None). `on_text` gets the words as they are
        generated. With `choices` the answer is one of these texts, as `Answer.choice` tells.

        A picture is a path, the bytes of an image file, an open binary file, a PIL image, or a uint8 array of shape
        (height, width), (height, width, 3) or (height, width, 4). Pictures above `max_pixels` (None: the model's own)
        or the bundle's limits are shrunk, and `Answer.resized` names them. `timeout` is in seconds. Another thread ends
        the answer by setting `cancel`, such as a `threading.Event`. `adapter` is as in `with_adapter`.

        Raises:
            DataError: a picture or the question cannot be used.
            CapacityError: the prompt or a picture is too large.
            BundleError: the bundle's program fails.
            TimeoutExceeded, Cancelled: the answer was ended before it was complete.
        """
        reasoner = self if adapter is None else self.with_adapter(adapter)
        options = ask_options(mode, max_new_tokens, max_latent_steps, halting)
        options = replace(options, stop=Stop.within(timeout, cancel))
        pairs, given = [(as_pictures(image), question_text(question))], Choices.of(choices)
        chosen = None if given is None else [given]
        return reasoner._answers(pairs, options, max_pixels, callback(on_text), chosen)[0]

    def ask_batch(
        self,
        questions: Sequence[tuple[Images, str]],
        mode: Mode = "latent",
        *,
        max_new_tokens: int | None = None,
        max_latent_steps: int | None = None,
        halting: Literal["adaptive", "fixed"] | None = None,
        max_pixels: int | None = None,
        timeout: float | None = None,
        cancel: CancelFlag | None = None,
        adapter: str | None = None,
        choices: Sequence[Sequence[str] | Choices | None] | None = None,
    ) -> list[Answer]:
        """Answers (image, question) pairs as one batch. `timings` and `timeout` are those of the whole batch. `choices`
        are those of each question; they are then answered one after the other. Raises as `ask`."""
        reasoner = self if adapter is None else self.with_adapter(adapter)
        options = ask_options(mode, max_new_tokens, max_latent_steps, halting)
        options = replace(options, stop=Stop.within(timeout, cancel))
        pairs = question_pairs(questions)
        return reasoner._answers(pairs, options, max_pixels, None, choices_of_each(choices, len(pairs)))

    def look(self, images: Images, *, max_pixels: int | None = None, timeout: float | None = None,
             cancel: CancelFlag | None = None) -> Scene:  # fmt: skip
        """Reads pictures once, for any number of questions about them: each costs what stands behind the pictures. The
        answers are those of `ask`, bit for bit on torch in float32. Pictures, `max_pixels`, `timeout` and `cancel` as
        in `ask`.

        Raises:
            DataError: a picture cannot be used, or there is none.
            UserError: a program that was exported without scenes, a model that prunes visual tokens, or a prompt format
                with the question in front of the pictures.
            CapacityError, TimeoutExceeded, Cancelled: as `ask`.
        """
        given = as_pictures(images)
        stop, most = Stop.within(timeout, cancel), whole_number("max_pixels", max_pixels, 1)
        return look_at(self.engine, self.scenes, given, most, stop)

    def open_scene(self, path: str | Path, images: Images = None) -> Scene:
        """A scene that `Scene.save` wrote, by the same model in whichever process. The file holds no pictures: give
        them as `images` where traces are to be drawn.

        Raises:
            DataError: no scene, a damaged one, one of another model or prompt format, or other pictures.
        """
        return open_scene(self.engine, self.scenes, file_path("path", path), as_pictures(images))

    def _answers(
        self,
        pairs: list[tuple[tuple[ImageSource, ...], str]],
        options: AskOptions,
        max_pixels: int | None,
        on_text: Callable[[str], None] | None,
        choices: Sequence[Choices | None] | None,
    ) -> list[Answer]:
        check_mode(self.engine, options.mode)
        max_pixels = whole_number("max_pixels", max_pixels, 1)
        clock, each = Clock(), choices or [None] * len(pairs)
        asked = [
            Asked(
                images,
                text,
                self.processor.encode_prompt(images, choice.question(text) if choice else text, max_pixels),
            )
            for (images, text), choice in zip(pairs, each, strict=True)
        ]
        if choices is None:
            clock.lap("preprocess")
            return answer_all(self.engine, asked, options, on_text, clock) if asked else []
        candidates = [None if choice is None else encode_candidates(self.processor, choice) for choice in each]
        clock.lap("preprocess")
        return answer_each(self.engine, asked, options, candidates, on_text, clock)


def _choice(
    engine: Any, options: Any, provider: Any, threads: Any, session_config: Any = None, provider_options: Any = None
) -> EngineChoice:
    return EngineChoice.of(
        text_or_none("engine", engine),
        texts("engine_options", options, of_texts=False),
        provider=text_or_none("provider", provider),
        threads=whole_number("threads", threads, 1),
        session_config=None if session_config is None else texts("session_config", session_config, of_texts=True),
        provider_options=None
        if provider_options is None
        else texts("provider_options", provider_options, of_texts=True),
    )
