"""The printed world: one character a picture, drawn from open fonts, and captions that are true of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mvc.randomness import numpy_generator
from mvc.tiny import DIGIT_WORDS

SIDE = 32
"""Pixels a side of every picture."""
_FINE = 4  # The shape is drawn this many times larger and averaged down, for smooth edges at any angle.

STYLES: dict[str, tuple[str, ...]] = {
    "plain": ("DejaVuSans", "cmss10"),
    "bold": ("DejaVuSans-Bold",),
    "italic": ("DejaVuSans-Oblique",),
    "bold italic": ("DejaVuSans-BoldOblique",),
    "serif": ("DejaVuSerif", "STIXGeneral", "cmr10"),
    "bold serif": ("DejaVuSerif-Bold", "STIXGeneralBol", "cmb10"),
    "italic serif": ("DejaVuSerif-Italic", "STIXGeneralItalic", "cmti10"),
    "typewriter": ("DejaVuSansMono", "cmtt10"),
}
"""Style words, and the font files that matplotlib ships for each."""
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (10, 10, 10),
    "red": (228, 40, 40),
    "green": (50, 200, 70),
    "blue": (60, 100, 240),
    "yellow": (242, 216, 50),
    "orange": (245, 140, 35),
    "pink": (245, 110, 190),
    "cyan": (50, 215, 225),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (5, 5, 5),
    "white": (247, 247, 247),
    "grey": (92, 92, 92),
    "navy": (12, 14, 74),
    "maroon": (84, 12, 24),
}
SIZES: dict[str, tuple[float, float]] = {"small": (11.0, 14.0), "medium": (16.5, 19.5), "large": (22.5, 26.5)}
"""Height of the character in pixels, before it is tilted."""
TILTS: dict[str, tuple[float, float]] = {
    "upright": (-4.0, 4.0),
    "tilted left": (11.0, 24.0),
    "tilted right": (-24.0, -11.0),
}
"""Degrees anticlockwise."""
_UNREADABLE = {
    ("white", "white"),
    ("black", "black"),
    ("black", "navy"),
    ("black", "maroon"),
    ("blue", "navy"),
}
_UNREADABLE |= {
    ("yellow", "white"),
    ("cyan", "white"),
    ("red", "maroon"),
    ("black", "grey"),
    ("blue", "grey"),
}
_WHITE_ON_BLACK_SHARE = 0.38
_NOUNS = ("digit", "number", "character")


@dataclass(frozen=True)
class Character:
    """One printed character: what its caption may say, and what it may not."""

    digit: int
    style: str
    colour: str
    size: str
    tilt: str
    background: str
    font: str
    height: float  # pixels
    angle: float  # degrees anticlockwise
    shift: tuple[float, float]  # of the centre, as a share of the free room, -1..1
    ink: tuple[int, int, int]  # 0..255, near the colour's own
    paper: tuple[int, int, int]  # 0..255, near the background's own

    @property
    def word(self) -> str:
        """The digit as a word, zero..nine."""
        return DIGIT_WORDS[self.digit]


def _jittered(colour: tuple[int, int, int], amount: int, random: np.random.Generator) -> tuple[int, int, int]:
    moved = np.clip(np.array(colour) + random.integers(-amount, amount + 1, 3), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


def draw_character(seed: int, index: int) -> Character:
    """Draw the character of a number; randomness: (seed, "world", index).

    About 40 % are white on black, which is the look of the handwritten digits' pictures.
    """
    random = numpy_generator(seed, "world", index)
    digit = int(random.integers(10))
    style = list(STYLES)[int(random.integers(len(STYLES)))]
    font = STYLES[style][int(random.integers(len(STYLES[style])))]
    colour, background = "white", "black"
    if random.random() >= _WHITE_ON_BLACK_SHARE:
        pairs = [(ink, paper) for ink in COLOURS for paper in BACKGROUNDS if (ink, paper) not in _UNREADABLE]
        colour, background = pairs[int(random.integers(len(pairs)))]
    size = list(SIZES)[int(random.integers(len(SIZES)))]
    tilt = list(TILTS)[int(random.integers(len(TILTS)))]
    return Character(
        digit=digit,
        style=style,
        colour=colour,
        size=size,
        tilt=tilt,
        background=background,
        font=font,
        height=float(random.uniform(*SIZES[size])),
        angle=float(random.uniform(*TILTS[tilt])),
        shift=(float(random.uniform(-1, 1)), float(random.uniform(-1, 1))),
        ink=_jittered(COLOURS[colour], 10, random),
        paper=_jittered(BACKGROUNDS[background], 5, random),
    )


@lru_cache(maxsize=512)
def _glyph(font: str, digit: int) -> Image.Image:
    """The character's shape, white on black, cut to its own box, 160 pixels high."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    face = ImageFont.truetype(str(path), 200)
    left, top, right, bottom = face.getbbox(str(digit))
    shape = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(shape).text((4 - left, 4 - top), str(digit), font=face, fill=255)
    shape = shape.crop(shape.getbbox())
    return shape.resize((max(1, round(shape.width * 160 / shape.height)), 160), Image.Resampling.LANCZOS)


def render(character: Character) -> NDArray[np.uint8]:
    """Draw the picture: (32, 32, 3), uint8. No randomness; nothing is cut off at the edge."""
    glyph = _glyph(character.font, character.digit)
    height = character.height * _FINE
    size = (max(1, round(glyph.width * height / glyph.height)), round(height))
    shape = glyph.resize(size, Image.Resampling.LANCZOS)
    shape = shape.rotate(character.angle, Image.Resampling.BICUBIC, expand=True)
    shape = shape.crop(shape.getbbox())
    largest = SIDE * _FINE - 4
    if max(shape.size) > largest:
        shape.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    canvas = Image.new("L", (SIDE * _FINE, SIDE * _FINE))
    # Characters wander by at most 3 pixels, and never over the edge.
    room = [min((SIDE * _FINE - extent) / 2 - 1, 3.0 * _FINE) for extent in shape.size]
    corner = [
        round((SIDE * _FINE - extent) / 2 + free * share)
        for extent, free, share in zip(shape.size, room, character.shift, strict=True)
    ]
    canvas.paste(shape, (corner[0], corner[1]))
    mask = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255
    ink, paper = np.array(character.ink, np.float32), np.array(character.paper, np.float32)
    return np.rint(mask * ink + (1 - mask) * paper).astype(np.uint8)


def describe(character: Character, noun: str | None = None, without: frozenset[str] = frozenset()) -> str:
    """Say what is to be seen, e.g. "a large white bold serif three tilted left on a black background".

    Args:
        character: what was drawn.
        noun: the word for it; None takes the digit's own word.
        without: attributes to leave unsaid, of size, colour, style, tilt, background.
    """
    words = [getattr(character, name) for name in ("size", "colour", "style") if name not in without]
    words.append(character.word if noun is None else noun)
    if "tilt" not in without:
        words.append(character.tilt)
    if "background" not in without:
        words.append(f"on a {character.background} background")
    text = " ".join(words)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def caption(character: Character, seed: int, index: int) -> str:
    """One true caption; randomness: (seed, "world caption", index).

    The first sentence is always "This is an image of <word>."; the second says all attributes, some, or
    is left out, and calls the thing by its word or just a digit.
    """
    random = numpy_generator(seed, "world caption", index)
    first = f"This is an image of {character.word}."
    kind = random.random()
    if kind < 0.08:
        return first
    names = ("size", "colour", "style", "tilt", "background")
    leaving = 0.0 if kind < 0.5 else 0.35
    without = frozenset(name for name in names if random.random() < leaving)
    noun = None if random.random() < 0.6 else _NOUNS[int(random.integers(len(_NOUNS)))]
    end = "." if random.random() < 0.5 else ""
    return f"{first} {describe(character, noun, without)}{end}"
