"""lrkit as a model of lmms-eval: its tasks are answered by lrkit's engines, its own metrics score the answers.

Place in the pipeline: lmms_eval_entry.py names this class; lmms-eval makes it from `--model_args` (asked.py) and calls
`generate_until` or `loglikelihood`. A bundle is answered without torch on lrkit's side; lmms-eval itself imports it.

Steps and latency: each sample of lmms-eval's log has token_counts (input_tokens: the prompt, output_tokens: spoken,
reasoning_tokens: latent steps), its results have means under throughput, and `answers=FILE` writes every answer.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from tqdm import tqdm

from lrkit.contract.bundle.bundle_folder import is_bundle
from lrkit.contract.choosing import Choices
from lrkit.errors import UserError
from lrkit.files import check_writable, write_text
from lrkit.harness.asked import Greedy, ModelArgs, greedy, model_args, pictures, scores_of
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.engines.programs.patience import patience_with
from lrkit.runtime.sdk import Reasoner
from lrkit.summary import summarize


class LrkitModel(lmms):  # pyright: ignore[reportUntypedBaseClass]
    """A bundle or a checkpoint."""

    is_simple = True

    def __init__(self, **given: Any) -> None:
        """`given` are the fields of `ModelArgs`.

        Raises:
            ConfigError: an unknown one, or a value that is not allowed.
            UserError: what `Reasoner.open` raises.
        """
        super().__init__()
        self.given = model_args(given)
        if self.given.answers is not None:
            check_writable(Path(self.given.answers))
        self.reasoner = _opened(self.given)
        self._told: set[str] = set()
        self._lines: list[str] = []

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.reasoner.engine.place

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """One `GenerationResult` per request, in their order.

        Raises:
            UserError: a task asks for more than greedy text about pictures.
        """
        found: list[Any] = []
        answers: list[Answer] = []
        seconds = 0.0
        with tqdm(total=len(requests), desc="lrkit", disable=self.rank != 0) as bar:
            for asked, part in self._parts(requests):
                said = self._ask([(images, question) for _, images, question in part], asked)
                seconds += said[0].timings["total"]  # each tells that of the whole batch
                for (request, _, _), answer in zip(part, said, strict=True):
                    self._note(request, answer)
                    found.append(GenerationResult(self._reply(answer, asked), _counts(answer)))
                answers += said
                bar.update(len(part))
        self._write()
        _log(answers, seconds)
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """(loss, whether it is the greedy one) of each continuation; those of one question are scored together, behind
        the answer's marker, as `Reasoner.ask` scores choices.

        Losses, not log probabilities: lmms-eval 0.7.3 takes the least for the best. It turns a bare pair into text, and
        leaves one in a `GenerationResult` as it is.

        Raises:
            UserError: the model gives no such probabilities, or there is one continuation alone.
        """
        found: list[Any] = []
        answers: list[Answer] = []
        for _, group in groupby(requests, lambda request: (request.args[0], request.args[3:])):
            alike = list(group)
            answer = self._score(alike)
            scores = scores_of(answer, str(alike[0].args[4]))
            found += [GenerationResult((-score, greedy), _counts(answer)) for score, greedy in scores]
            self._note(alike[0], answer)
            answers.append(answer)
        self._write()
        _log(answers, sum(one.timings["total"] for one in answers))
        return found

    def _score(self, alike: Sequence[Any]) -> Answer:
        if len(alike[0].args) != 6:
            raise UserError(
                "this task scores continuations without a question (acc_mutual_info), which lrkit cannot; "
                "choose another metric"
            )
        (_, images, question), sample = self._question(alike[0]), self._sample(alike[0])
        ends = [end(sample) if callable(end) else end for end in (one.args[1] for one in alike)]
        choices = Choices(tuple(str(end).strip() for end in ends), "texts")
        given: Any = {"max_latent_steps": self.given.max_latent_steps, "max_pixels": self.given.max_pixels}
        given |= {"max_new_tokens": self._most(self.given.max_new_tokens)}
        return self.reasoner.ask(images, question, self.given.mode, choices=choices, **given)

    def _sample(self, request: Any) -> Any:
        _, _, _, number, task, split = request.args
        return self.task_dict[task][split][number]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Always raises `UserError`."""
        raise UserError(
            "this task asks in several rounds, which may bring new pictures, and lrkit looks at pictures before the "
            "first question; choose a task with output_type generate_until"
        )

    def _parts(self, requests: Sequence[Any]) -> Iterator[tuple[Greedy, list[tuple[Any, list[Any], str]]]]:
        """Requests that can be answered at once, with their pictures, which are read now and not before."""

        def wanted(request: Any) -> Greedy:
            return greedy(request.args[1], str(request.args[4]))

        for asked, group in groupby(requests, wanted):
            alike = list(group)
            for start in range(0, len(alike), self.given.batch_size):
                yield asked, [self._question(request) for request in alike[start : start + self.given.batch_size]]

    def _question(self, request: Any) -> tuple[Any, list[Any], str]:
        context, _, to_visual, _, task, _ = request.args
        # Tasks mark the place of a picture by this text; pictures stand where the model's own template has them.
        question = str(context).replace("<image>", "").strip()
        return request, pictures(to_visual(self._sample(request)), str(task)), question

    def _ask(self, pairs: Any, asked: Greedy) -> list[Answer]:
        given = self.given
        most = self._most(given.max_new_tokens or asked.max_new_tokens)
        limits: Any = {"max_new_tokens": most, "max_latent_steps": given.max_latent_steps}
        limits |= {"max_pixels": given.max_pixels}
        limits |= {"timeout": patience_with(self.reasoner.engine, most, len(pairs))}
        return self.reasoner.ask_batch(pairs, given.mode, **limits)

    def _most(self, asked: int | None) -> int | None:
        """The task's longest speech, or the bundle's where that is less: it is the most that there can be."""
        limits = self.reasoner.processor.limits
        if asked is None or limits is None or asked <= limits.max_new_tokens:
            return asked
        self._tell(f"the task allows {asked} tokens, and this bundle speaks at most {limits.max_new_tokens}")
        return limits.max_new_tokens

    def _reply(self, answer: Answer, asked: Greedy) -> str:
        whole = answer.answer is None or self.given.reply == "text"
        return asked.cut(answer.text if whole else str(answer.answer))

    def _tell(self, note: str) -> None:
        if note not in self._told:
            self._told.add(note)
            tqdm.write(f"note: {note}")

    def _note(self, request: Any, answer: Answer) -> None:
        if self.given.answers is not None:
            line = {"task": request.task_name, "doc_id": request.doc_id, **answer.to_dict()}
            self._lines.append(json.dumps(line))

    def _write(self) -> None:
        """Once for each call, with what calls before gave."""
        if self.given.answers is not None:
            write_text(Path(self.given.answers), "".join(f"{line}\n" for line in self._lines))


def _opened(given: ModelArgs) -> Reasoner:
    of_bundle = is_bundle(given.pretrained)
    threads = given.threads if of_bundle else None
    where: Any = {"device": given.device, "provider": given.provider, "threads": threads}
    reasoner = Reasoner.open(given.pretrained, engine=given.engine, dtype=given.dtype, **where)
    if not of_bundle:
        reasoner.engine.use_threads(given.threads)
    reasoner = reasoner.baseline(given.mode).prepare()
    return reasoner if given.adapter is None else reasoner.with_adapter(given.adapter)


def _counts(answer: Answer) -> Any:
    return TokenCounts(answer.prefilled_tokens, answer.spoken_tokens, answer.latent_steps)


def _log(answers: Sequence[Answer], seconds: float) -> None:
    """Into lmms-eval's results, under throughput: means over the questions."""
    if not answers:
        return
    means = {
        name: summarize(getattr(one, name) for one in answers).mean
        for name in ("latent_steps", "ar_steps", "spoken_tokens", "replayed_tokens", "prefilled_tokens")
    }
    spoken = sum(one.spoken_tokens for one in answers)
    more = {"total_requests": len(answers), **means}
    log_metrics(seconds, spoken, spoken / seconds if seconds else 0.0, more)
