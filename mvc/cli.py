"""The `mvc` command. Nothing heavy is imported before a command runs, so that help answers at once."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvc import cli_clip, cli_texts, processes
from mvc.errors import ConfigError, MvcError
from mvc.options import Arguments, Data, DataSeeds, DryRun, Folds, Redo, num_processes

if TYPE_CHECKING:
    from mvc.config import Experiment

app = typer.Typer(
    name="mvc",
    help="Grow a small image-classification data set with synthetic images that stay in its domain, "
    "train classifiers with them, and say honestly whether they helped.",
    no_args_is_help=True,
    add_completion=False,
    # rich's help costs a third of the start-up time.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _resolve(arguments: list[str] | None, data: str | None, dry_run: bool) -> Experiment:
    from mvc.arguments import resolve
    from mvc.config_file import to_yaml

    experiment = resolve(list(arguments or []), data)
    if dry_run:
        print(to_yaml(experiment), end="")
        raise typer.Exit()
    return experiment


def _run(
    until: str,
    arguments: list[str] | None,
    data: str | None,
    dry_run: bool,
    redo: bool,
    keep: tuple[str, ...] = (),
) -> Experiment:
    from mvc.pipeline import run_stages
    from mvc.progress import say
    from mvc.stopping import watching

    experiment = _resolve(arguments, data, dry_run)
    with watching():
        worked = run_stages(experiment, until, redo, keep)
    if not worked:
        say(f"{experiment.run.dir}: everything was done before; nothing to do")
    return experiment


def _launch(number: int | None, arguments: list[str] | None, data: str | None, dry_run: bool) -> None:
    """Hand the command over to several processes, if so many are wanted and this is not one of them."""
    if processes.several():
        if number not in (None, processes.size()):
            raise ConfigError(
                f"--num-processes {number}, but a launcher has started {processes.size()} processes",
                do="leave --num-processes out",
            )
    elif number is not None and number > 1:
        from mvc.launch import launch

        _resolve(arguments, data, dry_run)  # a wrong key is said once, before anything starts
        raise typer.Exit(launch(number, sys.argv[1:]))


def _show_results(run: Path) -> None:
    # By name, because the library imports no app.
    import_module("mvc.classify.table").print_table(run)


def _repeat(
    until: str,
    arguments: list[str] | None,
    data: str | None,
    dry_run: bool,
    redo: bool,
    data_seeds: int | None,
    folds: int | None,
) -> Path:
    """Whole runs over several data seeds or folds, concluded together; returns the folder that holds them."""
    from mvc.repeats import run_repeats
    from mvc.stopping import watching

    experiment = _resolve(arguments, data, dry_run)
    with watching():
        run_repeats(experiment, data_seeds, folds, until, redo)
        page = import_module("mvc.report.repeats").write_repeats_report(Path(experiment.run.dir))
    print(f"report: {page}")
    return Path(experiment.run.dir)


@app.command()
def run(
    arguments: Arguments = None,
    data: Data = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    data_seeds: DataSeeds = None,
    folds: Folds = None,
) -> None:
    """Everything: check, caption, fine-tune, generate, train classifiers, report."""
    if data_seeds is not None or folds is not None:
        _show_results(_repeat("report", arguments, data, dry_run, redo, data_seeds, folds))
        return
    experiment = _run("report", arguments, data, dry_run, redo)
    folder = Path(experiment.run.dir)
    _show_results(folder)
    print(f"report: {folder / 'report' / 'index.html'}")


@app.command()
def check(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of class folders with images.")],
    background: Annotated[str, typer.Option(help="Colour put behind transparent pixels.")] = "white",
) -> None:
    """Look at a folder of images: counts, sizes, modes, corrupt files, duplicates, copies across splits."""
    from rich.console import Console

    from mvc.check import check_folder, print_report
    from mvc.stopping import watching

    with watching():
        report = check_folder(Path(folder), background)
    print_report(report, Console())
    if report.corrupt:
        raise typer.Exit(3)


@app.command()
def doctor() -> None:
    """Look at this machine: packages, devices, optional packages, free room. Exit code 4 if something is broken."""
    from rich.console import Console

    from mvc.doctor import examine
    from mvc.findings import is_broken, print_findings

    findings = examine(Path.cwd())
    print_findings(findings, Console())
    if is_broken(findings):
        raise typer.Exit(4)


@app.command()
def estimate(arguments: Arguments = None, data: Data = None, dry_run: DryRun = False) -> None:
    """Say what a run will take of memory, disk and time, from a few steps on random samples; writes nothing."""
    from mvc.stopping import watching

    experiment = _resolve(arguments, data, dry_run)
    with watching():
        import_module("mvc.train.estimate").run_estimate(experiment)


@app.command()
def caption(arguments: Arguments = None, data: Data = None, dry_run: DryRun = False, redo: Redo = False) -> None:
    """Write a caption for each training image into captions.jsonl."""
    experiment = _run("caption", arguments, data, dry_run, redo)
    print(f"captions: {Path(experiment.run.dir) / 'captions.jsonl'}")


@app.command("back-caption")
def back_caption(arguments: Arguments = None, data: Data = None, dry_run: DryRun = False, redo: Redo = False) -> None:
    """Write the texts that the source back_captioning draws from into back_captions.jsonl."""
    experiment = _run("back_caption", arguments, data, dry_run, redo)
    print(f"back captions: {Path(experiment.run.dir) / 'back_captions.jsonl'}")


@app.command()
def train(
    arguments: Arguments = None,
    data: Data = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    number: Annotated[
        int | None, num_processes("Fine-tune in N processes on this machine, one a GPU; the result is the same.")
    ] = None,
) -> None:
    """Fine-tune the diffusion model on same-class pairs; does what is missing before it."""
    _launch(number, arguments, data, dry_run)
    experiment = _run("train", arguments, data, dry_run, redo)
    print(f"model: {Path(experiment.run.dir) / 'model'}")


@app.command()
def generate(
    arguments: Arguments = None,
    data: Data = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    number: Annotated[
        int | None, num_processes("Draw in N processes on this machine, one a GPU; the images are the same.")
    ] = None,
) -> None:
    """Make the synthetic set: draw, filter, draw again what was refused; does what is missing before it."""
    if number is not None:
        arguments = [*(arguments or []), f"generate.num_processes={number}"]
    experiment = _run("filter", arguments, data, dry_run, redo)
    print(f"synthetic set: {Path(experiment.run.dir) / 'synthetic'}")


@app.command("filter")
def filter_(arguments: Arguments = None, data: Data = None, dry_run: DryRun = False, redo: Redo = False) -> None:
    """Judge the images that were drawn, again with other thresholds if you like; draws none."""
    experiment = _run("filter", arguments, data, dry_run, redo, keep=("train", "generate"))
    print(f"synthetic set: {Path(experiment.run.dir) / 'synthetic'}")


@app.command()
def quality(arguments: Arguments = None, data: Data = None, dry_run: DryRun = False, redo: Redo = False) -> None:
    """Measure the synthetic set against real images that no training saw; does what is missing before it."""
    experiment = _run("quality", arguments, data, dry_run, redo)
    import_module("mvc.generate.quality_stage").print_quality(Path(experiment.run.dir))


@app.command()
def regenerate(
    image: Annotated[str, typer.Argument(metavar="ID", help="CLASS/ID, or ID alone where one class has it.")],
    arguments: Arguments = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the new picture there, as PNG.")
    ] = None,
) -> None:
    """Make one synthetic image again from its row, and compare it with its file. Exit code 5 if it is another one."""
    from mvc.status import require_run
    from mvc.stopping import watching

    experiment = _resolve(arguments, data, False)
    folder = Path(experiment.run.dir)
    require_run(folder)
    with watching():
        outcome = import_module("mvc.generate.regenerate").regenerate(folder, experiment, image, out)
    print(outcome.describe())
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[Path | None, typer.Option("--to", metavar="FOLDER", help="A new folder.", show_default=False)] = None,
    form: Annotated[str, typer.Option("--format", metavar="imagefolder|parquet")] = "imagefolder",
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Send it to the Hugging Face hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: for its owner alone.")] = False,
) -> None:
    """Copy the accepted synthetic images with their rows and data card; sends them to the hub only with --push."""
    from mvc.status import require_run
    from mvc.stopping import watching

    if to is None and push is None:
        raise ConfigError("nothing says where to", do="give --to FOLDER, or --push OWNER/NAME")
    if private and push is None:
        raise ConfigError("--private goes with --push", do="leave it out, or give --push OWNER/NAME")
    if form not in ("imagefolder", "parquet"):
        raise ConfigError(f"--format {form} is not known", do="give imagefolder or parquet")
    require_run(run)
    exporter = import_module("mvc.generate.export")
    with watching():
        if to is not None:
            print(f"{exporter.export_set(run, to, form)} images: {to}")
        if push is not None:
            print(f"sent: {exporter.push_set(run, push, private)}")


@app.command()
def tune(arguments: Arguments = None, data: Data = None, dry_run: DryRun = False, redo: Redo = False) -> None:
    """Try a small grid of sampling settings and fine-tuning checkpoints on few images; judged on validation images."""
    experiment = _resolve(arguments, data, dry_run)
    module = import_module("mvc.tune")
    _run(module.stage_before(experiment), arguments, data, False, redo)
    from mvc.report.tuning import print_tune
    from mvc.stopping import watching

    with watching():
        module.run_tune(Path(experiment.run.dir), experiment)
    print_tune(Path(experiment.run.dir))


@app.command()
def classify(
    arguments: Arguments = None,
    data: Data = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Classifiers trained at once; sets classify.jobs.")] = None,
    table: Annotated[bool, typer.Option(help="Print rows in the form of the MVC paper's tables, too.")] = False,
    data_seeds: DataSeeds = None,
    folds: Folds = None,
    number: Annotated[
        int | None, num_processes("Train in N processes on this machine, one a GPU, each another classifier.")
    ] = None,
) -> None:
    """Train and compare classifiers; does what is missing before it."""
    _launch(number, arguments, data, dry_run)
    given = [*(arguments or []), *([] if jobs is None else [f"classify.jobs={jobs}"])]
    if data_seeds is not None or folds is not None:
        folder = _repeat("classify", given, data, dry_run, redo, data_seeds, folds)
    else:
        folder = Path(_run("classify", given, data, dry_run, redo).run.dir)
    _show_results(folder)
    if table:
        import_module("mvc.classify.paper_table").print_paper_tables(folder)


@app.command()
def report(arguments: Arguments = None, data: Data = None, dry_run: DryRun = False) -> None:
    """Write the HTML page of a run from what is there, finished or not."""
    experiment = _resolve(arguments, data, dry_run)
    from mvc.report.page import write_report
    from mvc.status import require_run

    require_run(Path(experiment.run.dir))
    print(f"report: {write_report(Path(experiment.run.dir), experiment)}")


@app.command()
def status(arguments: Arguments = None, data: Data = None, dry_run: DryRun = False) -> None:
    """Say how far each stage of a run is."""
    experiment = _resolve(arguments, data, dry_run)
    from mvc.status import print_status

    print_status(experiment)


app.command()(cli_texts.augment)
app.command()(cli_texts.texts)
app.command()(cli_clip.clip)
app.command("clip-evaluate")(cli_clip.clip_evaluate)

_INTERRUPTED = 130
"""What typer makes of a KeyboardInterrupt, which is a second signal."""


def _command() -> int:
    """Do the command; user errors become three lines and an exit code, never a traceback."""
    try:
        processes.gather()
        app()
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            print("error: interrupted\ndo: run the same command again to go on", file=sys.stderr)
            return 143
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except MvcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _join(word: Mapping[str, Any]) -> None:
    if word["stage"] == "clip":
        cli_clip.join(word)
        return
    from mvc.pipeline import join_stage

    join_stage(word)


def main() -> None:
    """Entry point, of one process or of each of several."""
    # Where bitsandbytes is installed, diffusers imports it, and it then warns of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    processes.watch_parent()
    if processes.rank() > 0:
        raise SystemExit(processes.follow(_join))
    code = _command()
    sys.stdout.flush()
    processes.release(code)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
