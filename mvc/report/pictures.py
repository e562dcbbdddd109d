"""Contact sheets: real, pre-trained, fine-tuned and other images of each class beside each other.

`python -m mvc.report.pictures RUN OUT.png` writes them as one picture.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mvc.config import Experiment
from mvc.config_file import read_yaml
from mvc.config_schema import build_experiment
from mvc.dataset import load_index
from mvc.errors import ConfigError, DataError, MvcError
from mvc.images import decode, to_uint8
from mvc.storage import write_bytes
from mvc.synthetic import METADATA, read_synthetic, synthetic_folder

BLOCKS = {
    "real": "real",
    "pretrained": "pre-trained",
    "finetuned": "fine-tuned",
    "sdedit": "image-to-image",
    "instruct_pix2pix": "InstructPix2Pix",
    "back_captioning": "back-captioned",
    "import": "imported",
}
"""Source of a block of images -> its heading."""
BASIC = ("real", "pretrained", "finetuned")
"""Blocks that a sheet has, and a page as long as nothing was generated."""
TILE = 96
"""Largest side of an image on a sheet, in pixels."""
GAP = 4
"""Pixels between two images."""
MARGIN, HEADING, BETWEEN = 12, 28, 24
"""Of the sheet: its edge, the height of the headings, the space between two blocks; in pixels."""


@dataclass(frozen=True)
class ClassSamples:
    """The images shown of one class.

    Attributes:
        folder: name of the class folder.
        words: the class in words.
        files: source (those of BLOCKS) -> image files, possibly none.
    """

    folder: str
    words: str
    files: dict[str, list[Path]]


def find_samples(run: Path, classes: int, samples: int) -> list[ClassSamples]:
    """The first images of each class and source: no picking, so that what is seen is what there is.

    Real ones are training images. Generated ones come from the finished synthetic set, and from run/preview
    for what the set does not hold.

    Args:
        run: the run folder.
        classes: how many classes at most, in the order of their labels.
        samples: how many images a class and source at most.

    Raises:
        DataError: the data stage has not run, or a file of the synthetic set is missing.
    """
    dataset = load_index(run)
    made = read_synthetic(run) if (synthetic_folder(run) / METADATA).exists() else []
    train = dataset.split("train")
    found = []
    for folder, words in list(zip(dataset.classes, dataset.words, strict=True))[:classes]:
        real = [dataset.image_path(record) for record in train if record.class_name == folder]
        # A run that was moved to another machine has its data folder no longer.
        files = {"real": [path for path in real if path.is_file()][:samples]}
        for source in list(BLOCKS)[1:]:
            own = [image.path for image in made if image.class_name == folder and image.source == source]
            files[source] = (own or _preview(run / "preview" / source / folder))[:samples]
        found.append(ClassSamples(folder, words, files))
    return found


def _preview(folder: Path) -> list[Path]:
    """The images of a preview folder in the order of their numbers."""
    paths = (path for path in folder.glob("*.png") if not path.name.startswith("."))
    return sorted(paths, key=lambda path: (len(path.stem), path.stem))


def blocks_of(found: Sequence[ClassSamples]) -> list[str]:
    """The sources to show: real images, and what was generated; all of BASIC if nothing was."""
    made = [source for source in list(BLOCKS)[1:] if columns_of(found, source)]
    return ["real", *made] if made else list(BASIC)


def columns_of(found: Sequence[ClassSamples], source: str) -> int:
    """The largest number of images that a class has of a source."""
    return max((len(samples.files[source]) for samples in found), default=0)


def tile_sides(found: Sequence[ClassSamples]) -> tuple[int, int]:
    """Side in pixels at which images are cut, and the side at which they are drawn, a multiple of it.

    The first is that of the generated images, so that real ones show as much detail, or else of the first
    real one; at most `TILE`. Small images are enlarged by repeating pixels, since browsers would blur them.
    """
    for source in ("finetuned", *(name for name in BLOCKS if name not in ("finetuned", "real")), "real"):
        for samples in found:
            for path in samples.files[source][:1]:
                return square_sides(path)
    return TILE, TILE


def square_sides(path: Path) -> tuple[int, int]:
    """The sides of `tile_sides` for images like this one."""
    side = min(*decode(path).size, TILE)
    return side, side * (TILE // side)


def tile(path: Path, sides: tuple[int, int], background: str = "white") -> Image.Image:
    """One image as an RGB square; `sides` as `tile_sides` gives them."""
    square = Image.fromarray(to_uint8(decode(path, background), sides[0]))
    return square.resize((sides[1], sides[1]), Image.Resampling.NEAREST)


def strip(paths: Sequence[Path], columns: int, sides: tuple[int, int], background: str = "white") -> Image.Image:
    """Images in one row, RGBA; places without an image, and the gaps, are transparent.

    Args:
        paths: at most `columns` image files.
        columns: places in the row.
        sides: as `tile_sides` gives them.
        background: colour behind transparent pixels of the images.
    """
    row = Image.new("RGBA", (columns * (sides[1] + GAP) - GAP, sides[1]))
    for place, path in enumerate(paths):
        row.paste(tile(path, sides, background), (place * (sides[1] + GAP), 0))
    return row


def png(image: Image.Image) -> bytes:
    """The image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """The image as a data: address."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def sample_sheet(run: Path, classes: int, samples: int, background: str = "white") -> Image.Image:
    """One picture with blocks beside each other, headed real, pre-trained, fine-tuned and so on; one row a class.

    Args:
        run: the run folder, with real, pre-trained and fine-tuned images; other sources are shown if they are there.
        classes: rows at most, in the order of the labels.
        samples: images a row and block at most; a block is as wide as its fullest row.
        background: colour behind transparent pixels of the real images.

    Returns:
        RGB image on white. Image c of row r in a block that begins at x lies at
        (x + c * (side + GAP), MARGIN + HEADING + r * (side + GAP)).

    Raises:
        DataError: one of the first three kinds of images is absent; names it.
    """
    found = find_samples(run, classes, samples)
    for source in BASIC:
        if not columns_of(found, source):
            raise DataError(
                f"{run} holds no {BLOCKS[source]} images", do="run `mvc run` to its end, with generate.preview > 0"
            )
    shown = blocks_of(found)
    sides = tile_sides(found)
    # Half of it, so that eight samples a block still make a picture of about 1,200 pixels.
    factor = max(1, TILE // 2 // sides[0])
    sides = (min(sides[0], TILE // 2), min(sides[0], TILE // 2) * factor)
    step = sides[1] + GAP
    widths = [columns_of(found, source) * step - GAP for source in shown]
    size = (2 * MARGIN + sum(widths) + (len(shown) - 1) * BETWEEN, 2 * MARGIN + HEADING + len(found) * step - GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    left = MARGIN
    for source, width in zip(shown, widths, strict=True):
        draw.text((left, MARGIN), BLOCKS[source], fill="black", font=font)
        for row, chosen in enumerate(found):
            for column, path in enumerate(chosen.files[source]):
                place = (left + column * step, MARGIN + HEADING + row * step)
                sheet.paste(tile(path, sides, background), place)
        left += width + BETWEEN
    return sheet


def main(arguments: Sequence[str]) -> int:
    """Write the sample sheet of a run to a PNG file; returns the exit code."""
    try:
        if len(arguments) != 2 or not arguments[1].lower().endswith(".png"):
            raise ConfigError("expected a run folder and a PNG file", do="python -m mvc.report.pictures RUN OUT.png")
        run, out = Path(arguments[0]), Path(arguments[1])
        settings, experiment = run / "experiment.yaml", Experiment()
        if settings.exists():
            experiment = build_experiment(*read_yaml(settings), str(settings))
        shown = experiment.report
        write_bytes(out, png(sample_sheet(run, shown.classes, shown.samples, experiment.data.background)))
    except MvcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
