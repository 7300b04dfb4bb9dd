"""`lrkit`: finds the verb, runs it, and turns what went wrong into one message and an exit code.

A verb is a function in the file of its name in `lrkit/cli/`; its docstring and the file's `EXAMPLES` are its help. The
files import torch inside the function only, so that help is quick.

Exit codes: 0 done, 2 an error that the message explains, 75 work that a scheduler stopped, 130 interrupted, 141
the reader of the output went away.
"""

import ast
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from lrkit import __version__
from lrkit.cli.shared.console import discard_output, err, flush_output, make_streams_safe
from lrkit.cli.shared.launched import Crew
from lrkit.cli.shared.old_spellings import modern
from lrkit.cli.shared.usage import USAGE_ERROR, is_misuse, misuse
from lrkit.errors import EXIT_CODE, LrkitError, clean, is_write_failure, missing_extra, os_sentence
from lrkit.registry import Registry

VERBS = Registry[Callable[..., None]](
    "verb",
    {
        "train": "lrkit.cli.train:train",
        "eval": "lrkit.cli.eval:eval_checkpoint",
        "ask": "lrkit.cli.ask:ask",
        "serve": "lrkit.cli.serve:serve",
        "export": "lrkit.cli.export:export",
        "engines": "lrkit.cli.engines:engines",
        "preflight": "lrkit.cli.preflight:preflight",
        "profile": "lrkit.cli.profile:profile",
        "sweep": "lrkit.cli.sweep:sweep",
        "report": "lrkit.cli.report:report",
        "compare": "lrkit.cli.compare:compare",
        "probe": "lrkit.cli.probe:probe",
        "ablate": "lrkit.cli.ablate:ablate",
        "analyze": "lrkit.cli.analyze:analyze",
        "demo": "lrkit.cli.demo:demo",
        "validate": "lrkit.cli.validate:validate",
        "doctor": "lrkit.cli.doctor:doctor",
        "ls": "lrkit.cli.ls:ls",
        "cp": "lrkit.cli.cp:cp",
        "push": "lrkit.cli.push:push",
        "fetch-base": "lrkit.cli.fetch_base:fetch_base",
    },
)
"""In the order of the help."""

INTERRUPTED = 130
CLOSED_OUTPUT = 141
"""Whoever read the output has closed it: 128 + SIGPIPE, as programs that the signal ends."""


class Interrupted(Exception):
    """Ctrl-C, carrying the sentence that the verb left about how to go on, and the exit code that it asks for."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Verb(TyperCommand):
    """A verb, whose help shows its own options first and then those that it shares with others, by group."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence, whole; the library would cut it at the width of the terminal."""
        first = (self.help or "").partition("\n\n")[0].replace("\n", " ")
        return first.rstrip(".")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As in the examples: the library's newest release puts what must be given in braces."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes a section per group; as the library's own, which knows groups only where it may use colours."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                group = "Arguments" if param.param_type_name == "argument" else None
                sections.setdefault(group or getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class VerbGroup(TyperGroup):
    """A group whose commands are the files of `lrkit/cli/`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS.rows)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        function = VERBS.load(cmd_name)
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        examples = _examples(sys.modules[function.__module__].EXAMPLES)
        single.command(name=cmd_name, cls=Verb, help=_description(function), epilog=examples)(function)
        command = typer.main.get_command(single)
        for param in command.params:
            if param.param_type_name == "argument" and param.metavar is None:
                param.metavar = str(param.name).upper()  # as in the examples; the library's own form changes
        return command

    # The library would say "Aborted" and exit with 1; a verb may have raised it with a sentence on how to go on.
    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _told():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _told():
            return super().invoke(ctx)


@contextmanager
def _told() -> Generator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted; nothing more was written"
        raise Interrupted(said, getattr(stop, "exit_code", INTERRUPTED)) from stop
    except USAGE_ERROR as error:
        if not is_misuse(error):
            raise
        raise misuse(error) from error


app = typer.Typer(
    cls=VerbGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Vision-language models that reason in a few latent steps, from training to the device.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lrkit {__version__}")
        raise typer.Exit


@app.callback(epilog="`lrkit VERB --help` shows the options of a verb, with examples.")
def lrkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with `arguments` (default: those of the process); leaves by SystemExit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]  # so that it may stand after the verb too
    make_streams_safe()
    own = arguments is None
    crew = Crew.of(given) if own and threading.current_thread() is threading.main_thread() else Crew()
    if crew.leaves_help(given):
        raise SystemExit(0)
    with _signals(own):
        try:
            _run(given, debug, crew)
        except SystemExit as left:
            if own and isinstance(left.__context__, Interrupted | KeyboardInterrupt):
                # Python itself would end by the signal where it came while a string of code was run, and would wait
                # for threads; all files are closed and all temporary ones gone by now.
                discard_output()
                os._exit(left.code if isinstance(left.code, int) else INTERRUPTED)
            raise


def _run(given: Sequence[str], debug: bool, crew: Crew) -> None:
    try:
        try:
            app(modern(given), prog_name="lrkit")
        finally:
            flush_output()  # a full disk is to be seen here, not while Python shuts down
    except (Interrupted, KeyboardInterrupt) as stop:
        if not (crew.follows or getattr(stop.__cause__, "silent", False)):  # another process of the same run says it
            _say(f"\n{stop}")
        raise SystemExit(getattr(stop, "exit_code", INTERRUPTED)) from None
    except BrokenPipeError:
        discard_output()
        raise SystemExit(CLOSED_OUTPUT) from None
    except LrkitError as error:
        _fail(str(error), error, debug, crew)
    except Exception as error:
        if isinstance(error, ImportError) and (missing := missing_extra(error)) is not None:
            _fail(str(missing), error, debug, crew)
        if not is_write_failure(error):
            raise
        discard_output()
        _fail(os_sentence(error), error, debug, crew)


@contextmanager
def _signals(own: bool) -> Generator[None]:
    """SIGTERM ends a verb as Ctrl-C does. While Python shuts down, a further signal ends it without a traceback. Of a
    program that calls `main` itself (not `own`) the signals stay as they are."""
    own = own and threading.current_thread() is threading.main_thread()
    if own and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM) if own else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt("terminated; nothing more was written")


def _fail(message: str, error: Exception, debug: bool, crew: Crew) -> None:
    if debug:
        raise error
    if not getattr(error, "silent", False) and crew.tells():  # as above
        _say(f"error: {message}")
    raise SystemExit(EXIT_CODE) from None


def _say(message: str) -> None:
    """A message on standard error, each line without control characters."""
    err(soft_wrap=True).print("\n".join(clean(line) for line in message.split("\n")))


def _description(function: Callable[..., None]) -> str:
    """The docstring of a verb; from its file where Python runs without docstrings (-OO)."""
    if function.__doc__ is not None:
        return inspect.cleandoc(function.__doc__)
    try:
        tree = ast.parse(Path(function.__code__.co_filename).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # only the compiled file is there
        return ""
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function.__name__)
    return next((ast.get_docstring(node) or "" for node in found), "")


def _examples(text: str) -> str:
    """The examples as one block of unwrapped lines: \\b keeps the help from filling them into a paragraph."""
    title, *lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])
