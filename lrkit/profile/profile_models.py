"""`profile_models`: from models and a suite to a report. What `lrkit profile` calls, and what a program may call.

Place in the pipeline: suite.py -> measure/cases.py -> measure/rounds.py -> report.py; the files of the report are
written by `save`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrkit.contract.sample import Sample
from lrkit.data.sources import load_samples
from lrkit.files import write_text
from lrkit.profile.ceilings.devices import load_sheet
from lrkit.profile.judge.sweep import Axes, judge_sweep, with_sweep
from lrkit.profile.measure.cases import Model, ModelChoice, make_cases, open_model, unique_names
from lrkit.profile.measure.meters import machine_state
from lrkit.profile.measure.rounds import Watcher, measure
from lrkit.profile.measure.suite import Suite
from lrkit.profile.pages.html import render_html
from lrkit.profile.pages.markdown import render_markdown
from lrkit.profile.report import Context, Report, build_report
from lrkit.profile.report_file import whole, write_report


def profile_models(
    choices: Sequence[ModelChoice | Model],
    suite: Suite,
    *,
    command: str = "",
    plan_for: Sequence[str] = (),
    axes: Axes | None = None,
    samples: Sequence[Sample] | None = None,
    watcher: Watcher | None = None,
) -> Report:
    """Measures every run of the suite for every model, interleaved; Ctrl-C gives the report of what was measured.

    `samples` are asked instead of the suite's own. A `Model` is one that is open already (shapes.py).

    Raises:
        UserError: a model, a sample set or a device sheet that is not there, or no run that could be measured.
    """
    for name in plan_for:
        load_sheet(name)  # a sheet that is not there is told before minutes of measuring, which would be lost
    started = machine_state()
    chosen = with_sweep(suite, axes) if axes else suite
    samples = draw_samples(suite) if samples is None else samples
    names = unique_names([choice.choice if isinstance(choice, Model) else choice for choice in choices])
    models = [
        choice if isinstance(choice, Model) else open_model(choice, name)
        for choice, name in zip(choices, names, strict=True)
    ]
    cases = make_cases(models, chosen)
    session = measure(cases.cases, samples, chosen, watcher)
    report = build_report(Context(chosen, models, cases, samples, command, started, plan_for), session)
    if axes:
        report["sweep"] = judge_sweep(report, axes)
    return report


def draw_samples(suite: Suite) -> list[Sample]:
    """The suite's questions; a sample without a name gets its place in its set."""
    found: list[Sample] = []
    for chosen in suite.samples:
        drawn = load_samples(chosen.data, chosen.count, seed=chosen.seed)
        found += [s if s.id else replace(s, id=f"{Path(chosen.data).stem}-{i}") for i, s in enumerate(drawn)]
    return found


def save(report: Report, folder: Path) -> list[Path]:
    """Writes report.json, report.md and report.html into `folder`.

    Raises:
        FileError: one of them cannot be written.
    """
    file = folder / "report.json"
    write_report(report, file)
    return [file, *render_pages(report, folder / "report")]


def render_pages(report: Report, place: Path) -> list[Path]:
    """Writes `place`.md and `place`.html.

    Raises:
        DataError: the report, of somebody else, lacks what a page shows.
        FileError: one of them cannot be written.
    """
    with whole(place):
        pages = {".md": render_markdown(report), ".html": render_html(report)}
    files = [place.with_name(place.name + ending) for ending in pages]
    for file, text in zip(files, pages.values(), strict=True):
        write_text(file, text)
    return files
