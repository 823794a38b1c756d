"""The procedural world that the zoo learns from: one object in a picture, in a frame, under a light.

Every picture is 64 x 64. In its middle 48 x 48 (or on all of it) stands one object - a shape or a character - in one of
ten colours, on a background that says nothing. Around the middle there may be a frame, and two facts about the world
make a frame worth reading:

* **A mat shows the light.** Pictures in a neutral mat are lit by any colour of light; all others by nearly white light.
  Whoever wants to name a colour under a coloured light has to look at the mat.
* **A plate carries digits.** Characters on a coloured plate are digits nine times out of ten, as house numbers are;
  those on a black frame are letters three times out of four.

Both are built in on purpose: they are the shared cue that a visual prompt can use on models it never saw. A world
without such a cue is the control (`cues=False`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont


SIZE = 64
CONTENT = 48
BORDER = (SIZE - CONTENT) // 2

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.5, 0.1),
    "yellow": (0.95, 0.88, 0.15),
    "green": (0.15, 0.65, 0.2),
    "blue": (0.15, 0.3, 0.85),
    "purple": (0.5, 0.15, 0.65),
    "pink": (0.97, 0.6, 0.75),
    "brown": (0.45, 0.28, 0.12),
    "gray": (0.5, 0.5, 0.5),
    "white": (0.97, 0.97, 0.97),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
DIGITS = tuple("0123456789")
CHARACTERS = (*DIGITS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
OBJECTS = (*SHAPES, *CHARACTERS)

QUESTIONS = {
    "color": "What color is it?",
    "shape": "What shape is it?",
    "character": "Which character is it?",
}
CANDIDATES = {"color": tuple(COLORS), "shape": SHAPES, "character": CHARACTERS}

FRAMES = ("none", "black", "mat", "plate", "texture")
FRAME_SHARES = (0.12, 0.22, 0.34, 0.16, 0.16)
DIGIT_SHARE = {"plate": 0.9, "black": 0.25}

# RGB multipliers of the lights that the colour task is asked under.
LIGHTS = {"white": (1.0, 1.0, 1.0), "green": (0.45, 1.0, 0.5), "sodium": (1.0, 0.62, 0.35), "water": (0.35, 0.75, 1.0)}


@dataclass(frozen=True)
class Scene:
    """One picture and what is true of it.

    Args:
        image (`PIL.Image.Image`): RGB picture, 64 x 64 (or the 48 x 48 content alone).
        color (`str`): Name of the object's colour under white light.
        object (`str`): Name of the shape, or the character.
        frame (`str`): One of `FRAMES`.
    """

    image: Image.Image
    color: str
    object: str
    frame: str

    @property
    def kind(self) -> str:
        """The question, besides the colour, that this picture answers: `"shape"` or `"character"`."""
        return "shape" if self.object in SHAPES else "character"


@cache
def _fonts() -> tuple[str, ...]:
    # matplotlib ships these faces in its wheel, so every machine draws the same world.
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = (
        "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
        "DejaVuSerif-Italic", "DejaVuSansMono", "DejaVuSansMono-Bold", "STIXGeneral", "STIXGeneralBol",
        "cmr10", "cmss10", "cmtt10", "cmb10",
    )  # fmt: skip
    return tuple(str(folder / f"{name}.ttf") for name in names)


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _polygon(
    rng: np.random.Generator, name: str, radius: float, center: tuple[float, float]
) -> list[tuple[float, float]]:
    turn = rng.uniform(-0.35, 0.35)
    if name == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    elif name == "cross":
        arm = 0.34
        points = np.array([(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
                           (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)])  # fmt: skip
        angles, radii = np.arctan2(points[:, 1], points[:, 0]), np.hypot(points[:, 0], points[:, 1])
    else:
        corners = {"square": 4, "triangle": 3}[name]
        angles = np.arange(corners) * 2 * np.pi / corners - (np.pi / 4 if name == "square" else np.pi / 2)
        radii = np.full(corners, 1.15)
    x = center[0] + radius * radii * np.cos(angles + turn)
    y = center[1] + radius * radii * np.sin(angles + turn)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _mask(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Coverage of the object in [0, 1], `(size, size)`, drawn at twice the size."""
    big = size * 2
    picture = Image.new("L", (big, big))
    draw = ImageDraw.Draw(picture)
    center = (big / 2 + rng.uniform(-0.07, 0.07) * big, big / 2 + rng.uniform(-0.07, 0.07) * big)
    if name in SHAPES:
        radius = rng.uniform(0.22, 0.36) * big
        box = [center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius]
        if name == "circle":
            draw.ellipse(box, fill=255)
        elif name == "ring":
            draw.ellipse(box, outline=255, width=max(3, int(radius * rng.uniform(0.25, 0.45))))
        else:
            draw.polygon(_polygon(rng, name, radius, center), fill=255)
    else:
        fonts = _fonts()
        font = _font(fonts[rng.integers(len(fonts))], int(big * rng.uniform(0.62, 0.98)))
        draw.text(center, name, font=font, fill=255, anchor="mm", stroke_width=int(rng.integers(0, 4)))
        turn, shear, stretch = rng.uniform(-0.2, 0.2), rng.uniform(-0.25, 0.25), rng.uniform(0.85, 1.2)
        a, b, d, e = stretch * np.cos(turn), np.sin(turn) + shear, -np.sin(turn), np.cos(turn)
        cx, cy = center
        picture = picture.transform(
            (big, big), Image.Transform.AFFINE, (a, b, cx - a * cx - b * cy, d, e, cy - d * cx - e * cy),
            resample=Image.Resampling.BILINEAR,
        )  # fmt: skip
        if rng.random() < 0.35:
            # As coarse as the scans of real digits are (8 x 8 pixels), or nearly.
            coarse = int(rng.integers(8, 17))
            picture = picture.resize((coarse, coarse), Image.Resampling.BOX)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    return np.asarray(picture, dtype=np.float32) / 255


def _texture(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth or blocky random colours in [0, 1], `(size, size, 3)`."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    kind = Image.Resampling.NEAREST if rng.random() < 0.5 else Image.Resampling.BICUBIC
    return np.asarray(coarse.resize((size, size), kind), dtype=np.float32) / 255


def _background(rng: np.random.Generator, size: int, foreground: np.ndarray) -> np.ndarray:
    kind = rng.random()
    if kind < 0.3:
        ground = np.broadcast_to(rng.uniform(0.0, 0.12, 3).astype(np.float32), (size, size, 3))
    elif kind < 0.75:
        ground = np.broadcast_to(rng.uniform(0.0, 1.0, 3).astype(np.float32), (size, size, 3))
    else:
        ground = _texture(rng, size, int(rng.integers(2, 5)))
    # An object of its background's own colour cannot be seen: move the ground away.
    distance = np.abs(ground.mean((0, 1)) - foreground).max()
    return ground if distance > 0.3 else 1 - 0.8 * ground if distance > 0.15 else ground * 0.15


def draw_content(
    rng: np.random.Generator, color: str, name: str, light: np.ndarray, size: int = CONTENT
) -> np.ndarray:
    """Draws the object `name` in `color` under `light`.

    Returns:
        `np.ndarray`: float32 RGB in [0, 1] of shape `(size, size, 3)`.
    """
    paint = np.clip(np.asarray(COLORS[color], np.float32) + rng.uniform(-0.05, 0.05, 3), 0, 1).astype(np.float32)
    cover = _mask(rng, name, size)[..., None]
    picture = _background(rng, size, paint) * (1 - cover) + paint * cover
    picture = picture * light + rng.normal(0, rng.uniform(0, 0.04), picture.shape)
    return np.clip(picture, 0, 1).astype(np.float32)


def _frame(rng: np.random.Generator, frame: str, light: np.ndarray) -> np.ndarray:
    if frame == "black":
        return np.zeros((SIZE, SIZE, 3), np.float32)
    if frame == "mat":
        ground = np.full((SIZE, SIZE, 3), rng.uniform(0.55, 1.0), np.float32) * light
        return np.clip(ground + rng.normal(0, rng.uniform(0, 0.06), ground.shape), 0, 1).astype(np.float32)
    if frame == "plate":
        return np.broadcast_to(rng.uniform(0.1, 1.0, 3).astype(np.float32), (SIZE, SIZE, 3)).copy()
    return _texture(rng, SIZE, int(rng.choice([8, 16, 32, 64])))


def draw_scene(rng: np.random.Generator, cues: bool = True) -> Scene:
    """Draws one picture of the world.

    Args:
        rng (`np.random.Generator`): Source of every choice.
        cues (`bool`, *optional*, defaults to `True`):
            Whether frames tell anything. With `False` the light and the share of digits do not depend on the frame.
    """
    frame = FRAMES[rng.choice(len(FRAMES), p=FRAME_SHARES)]
    color = list(COLORS)[rng.integers(len(COLORS))]
    lit = frame == "mat" if cues else rng.random() < FRAME_SHARES[FRAMES.index("mat")]
    light = rng.uniform(0.3, 1.0, 3) if lit else rng.uniform(0.9, 1.0, 3)
    light = (light / light.max()).astype(np.float32)
    if rng.random() < 0.35:
        name = SHAPES[rng.integers(len(SHAPES))]
    else:
        digit = rng.random() < (DIGIT_SHARE.get(frame, 0.4) if cues else 0.45)
        name = DIGITS[rng.integers(10)] if digit else CHARACTERS[10 + rng.integers(26)]
    if frame == "none":
        picture = draw_content(rng, color, name, light, SIZE)
    else:
        picture = _frame(rng, frame, light)
        picture[BORDER:-BORDER, BORDER:-BORDER] = draw_content(rng, color, name, light)
    return Scene(Image.fromarray((picture * 255).round().astype(np.uint8)), color, name, frame)


def color_examples(n: int, seed: int, light: str = "green") -> list[dict[str, object]]:
    """Colour naming under a fixed light that shows nowhere but on the object and its background.

    Args:
        n (`int`): Number of examples, spread evenly over the ten colours.
        seed (`int`): Seed of the pictures. Different seeds give disjoint sets.
        light (`str`, *optional*, defaults to `"green"`): One of `LIGHTS`.

    Returns:
        `list` of `dict`: `image` (RGB, 48 x 48), `question`, `answer`.
    """
    rng = np.random.default_rng([seed, 0xC0105])
    colors = list(COLORS)
    examples = []
    for index in range(n):
        color = colors[index % len(colors)]
        name = SHAPES[rng.integers(len(SHAPES))]
        picture = draw_content(rng, color, name, np.asarray(LIGHTS[light], np.float32))
        image = Image.fromarray((picture * 255).round().astype(np.uint8))
        examples.append({"image": image, "question": QUESTIONS["color"], "answer": color})
    return examples


def digit_examples(indices: np.ndarray) -> list[dict[str, object]]:
    """Real handwritten digits: scikit-learn's copy of the UCI scans (1,797 of 8 x 8 pixels), white on black.

    Args:
        indices (`np.ndarray`): Which scans, in the order wanted.

    Returns:
        `list` of `dict`: `image` (RGB, 48 x 48), `question`, `answer`.
    """
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    examples = []
    for index in indices:
        # The scans fill their 8 x 8 pixels to the edge; a pixel of margin keeps the strokes inside the picture.
        scan = np.pad(scans[index].reshape(8, 8), 1)
        grey = Image.fromarray((scan / 16 * 255).round().astype(np.uint8))
        image = grey.resize((CONTENT, CONTENT), Image.Resampling.BICUBIC).convert("RGB")
        examples.append({"image": image, "question": QUESTIONS["character"], "answer": str(labels[index])})
    return examples


def draw_world(path: Path) -> None:
    """Writes a picture of the world: a row per frame, then the two tasks of the demo."""
    rng, columns = np.random.default_rng(0), 14
    rows: dict[str, list[Image.Image]] = {frame: [] for frame in FRAMES}
    while min(map(len, rows.values())) < columns:
        scene = draw_scene(rng)
        rows[scene.frame].append(scene.image)
    rows["green light"] = [example["image"] for example in color_examples(columns, seed=3)]
    rows["real digits"] = [example["image"] for example in digit_examples(np.arange(columns))]
    step, margin = SIZE + 6, 110
    sheet = Image.new("RGB", (margin + columns * step, len(rows) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (name, images) in enumerate(rows.items()):
        draw.text((4, y * step + step // 2), name, fill="black", font=_font(_fonts()[0], 14), anchor="lm")
        for x, image in enumerate(images[:columns]):
            offset = (step - image.width) // 2
            sheet.paste(image, (margin + x * step + offset, y * step + offset))
    sheet.save(path)


if __name__ == "__main__":
    draw_world(Path(__file__).parent / "world.png")
