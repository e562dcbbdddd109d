"""The generate stage: draw what is wanted, let the filters look, and draw again what they refuse, a few times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mvc import processes
from mvc.amounts import previewed
from mvc.candidates import Pool, close_pool, is_closed, open_pool, pool_of, read_candidates, whole_rows
from mvc.config import Experiment
from mvc.config_generation import PREVIEWED
from mvc.models import FACTS
from mvc.progress import say
from mvc.storage import write_json
from mvc.synthetic import WANTED, Candidate, recipe_of

from .inputs import Inputs, jobs_for, read_inputs, slot_order, wanted_slots
from .jobs import Job, Slot
from .judging import accepted_slots, judge_pool, prepare_judging, slot_of
from .recipes import job_of, recipes_of
from .rounds import DrawRound, drawing, join_drawing


def run_generate(run: Path, experiment: Experiment) -> None:
    """Draw the pool of candidates, run/synthetic, and previews of sources that are not in it, run/preview.

    Images that earlier work left and that still belong are kept. Each image depends on
    (run.seed, source, class, index, attempt) alone.

    Args:
        run: the run folder, with index, captions and, for the fine-tuned source, the model.
        experiment: sections run, data, mixing, model, generate and filter are used.

    Raises:
        DataError: something that an earlier stage writes is missing or damaged.
        ConfigError: data.image_size does not fit the model, or per_real asks for no image at all.
        EnvironmentFault: a model cannot be loaded, memory or disk is too small.
        Stopped: a signal asked for a stop.
    """
    if processes.rank():
        join_drawing(run, experiment)
        return
    inputs = read_inputs(run, experiment)
    slots = wanted_slots(inputs)
    with drawing(inputs) as draw_round:
        rows, missing = fill_pool(inputs, pool_of(run), slots, experiment.filter.attempts, draw_round)
        lacking = f"; {len(missing)} are wanted still" if missing else ""
        say(f"generate: {len(rows)} images drawn for {len(slots)} places{lacking}")
        _note_wanted(run, slots)
        _make_previews(inputs, draw_round)


def fill_pool(
    inputs: Inputs, pool: Pool, wanted: Sequence[Slot], attempts: int, draw_round: DrawRound
) -> tuple[dict[str, Candidate], list[Slot]]:
    """Draw until the filters accept an image for every slot, or its attempts are spent.

    Every round is a function of what was drawn before it, so an interruption changes nothing.

    Args:
        inputs: what the jobs refer to.
        pool: where they go.
        wanted: all slots, in their order.
        attempts: draws of a slot at the most.
        draw_round: from `rounds.drawing`.

    Returns:
        all rows by file name, and the slots that have no accepted image.
    """
    # Before anything is drawn: filters that cannot be fitted shall say so now, and not hours later.
    judging = prepare_judging(inputs.run, inputs.experiment, inputs.dataset, inputs.image_size)
    rows = belonging(inputs, pool, wanted)
    start = dict(rows)
    missing = list(wanted)
    for attempt in range(1, attempts + 1):
        jobs = jobs_for(inputs, missing, attempt, rows.values())
        if not _all_there(jobs, rows):
            if attempt > 1:
                say(f"generate: {len(jobs)} of {len(wanted)} images were refused and are drawn again")
            if rows == start:
                open_pool(pool, rows)
            draw_round(pool, rows, jobs)
        # What an earlier call drew with more attempts counts as well once these are spent.
        seen = [row for row in rows.values() if row["attempt"] <= attempt or attempt == attempts]
        accepted = accepted_slots(seen, judge_pool(judging, pool, seen))
        missing = [slot for slot in wanted if slot not in accepted]
        if not missing:
            break
    if rows != start or not is_closed(pool, rows):
        close_pool(pool, rows)
    return rows, missing


def _note_wanted(run: Path, slots: Sequence[Slot]) -> None:
    counts: dict[str, dict[str, int]] = {}
    for source, name, _ in slots:
        own = counts.setdefault(source, {})
        own[name] = own.get(name, 0) + 1
    write_json(run / "synthetic" / WANTED, counts)


def belonging(inputs: Inputs, pool: Pool, wanted: Iterable[Slot]) -> dict[str, Candidate]:
    """Rows of earlier work that are still good: wanted, of the same recipe, their files as they were written."""
    allowed = set(wanted)
    found = [row for row in read_candidates(pool).values() if slot_of(row) in allowed]
    jobs = [job_of(inputs, row) for row in found if _kept_import(inputs, row)]
    for attempt in sorted({row["attempt"] for row in found}):
        slots = {slot_of(row) for row in found if row["attempt"] == attempt and not _kept_import(inputs, row)}
        jobs += jobs_for(inputs, sorted(slots, key=slot_order), attempt)
    recipes = recipes_of(inputs, jobs)
    return whole_rows(pool, [row for row in found if recipes.get(row["file_name"]) == recipe_of(row)])


def _kept_import(inputs: Inputs, row: Candidate) -> bool:
    """Whether it is a later attempt at an imported image, whose file follows from what was refused before it."""
    files = [] if inputs.imported is None else inputs.imported.files[row["class_name"]]
    return row["source"] == "import" and row["attempt"] > 1 and row["imported_file"] in files


def _make_previews(inputs: Inputs, draw_round: DrawRound) -> None:
    """Draw a few images of the sources that are not in the set; filters don't look at them."""
    chosen = previewed(inputs.experiment)
    for source in PREVIEWED:
        folder = inputs.run / "preview" / source
        if source not in chosen or (source == "finetuned" and not (inputs.run / "model" / FACTS).exists()):
            continue
        slots = [(source, name, index) for index in range(inputs.experiment.generate.preview) for name in inputs.texts]
        pool = Pool(folder, folder, folder)
        rows = belonging(inputs, pool, slots)
        jobs = jobs_for(inputs, slots, 1)
        if not _all_there(jobs, rows):
            open_pool(pool, rows)
            draw_round(pool, rows, jobs)
        if not is_closed(pool, rows):
            close_pool(pool, rows)


def _all_there(jobs: Sequence[Job], rows: Mapping[str, Candidate]) -> bool:
    return all(f"{job.class_name}/{job.id}.png" in rows for job in jobs)
