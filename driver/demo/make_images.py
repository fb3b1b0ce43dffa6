#!/usr/bin/env python3
"""Draws the synthetic images of the vitc demo: 48x48 RGB, ten shape and texture classes.

Nothing here comes from a third-party data set, so the images can be redistributed
with the repository.  `python make_images.py` writes next to this file

    classes.txt       class names, one per line, line number = class index
    calib/NNN.png     calibration images (no labels needed)
    eval/NNN.png      evaluation images
    eval/labels.txt   "file class_index" per line

`train.py` imports `arrays()` to draw its training set with the same code.

Each image owns a random generator seeded with (SEED, split, index).  An image therefore
never depends on how many others are drawn or in which order, and the three splits
cannot share an image.  The shapes are evaluated as signed distance functions in numpy
instead of with a drawing library, which keeps edges smooth and the pixels independent of
the Pillow version: Pillow only writes the PNG files.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 48
SEED = 20_260
SPLITS = {"train": 0, "calib": 1, "eval": 2}
CLASSES = [
    "circle", "ring", "crescent", "triangle", "square",
    "star", "cross", "stripes", "checker", "dots",
]

# Pixel centres, in pixels.
YY, XX = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64) + 0.5


# --- Signed distances in shape coordinates: negative inside, outer radius about 1. ---

def polygon(u, v, sides):
    """Regular polygon: the largest of the distances to its edge lines."""
    apothem = np.cos(np.pi / sides)
    angles = 2 * np.pi * np.arange(sides) / sides
    return np.max([u * np.cos(a) + v * np.sin(a) for a in angles], axis=0) - apothem


def box(u, v, half_width, half_height):
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def star(u, v, inner):
    """Five-pointed star: fold the plane onto one half point, then distance to one edge."""
    half = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(v, u), 2 * half) - half)  # half at a tip, 0 in a notch
    radius = np.hypot(u, v)
    x, y = radius * np.cos(half - angle), radius * np.sin(half - angle)
    nx, ny = inner * np.sin(half), 1 - inner * np.cos(half)  # normal of tip -> notch edge
    length = np.hypot(nx, ny)
    return ((x - 1) * nx + y * ny) / length


def shape_distance(name, u, v, rng):
    radius = np.hypot(u, v)
    if name == "circle":
        return radius - 0.9
    if name == "ring":
        return np.abs(radius - 0.72) - rng.uniform(0.12, 0.26)
    if name == "crescent":
        bite = np.hypot(u - rng.uniform(0.38, 0.6), v)
        return np.maximum(radius - 0.95, 0.75 - bite)
    if name == "triangle":
        return polygon(u, v, 3)
    if name == "square":
        return polygon(u, v, 4)
    if name == "star":
        return star(u, v, rng.uniform(0.4, 0.56))
    if name == "cross":
        arm = rng.uniform(0.2, 0.34)
        return np.minimum(box(u, v, 0.95, arm), box(u, v, arm, 0.95))
    # The textures fill an outline which the other classes use too, so that the outline
    # alone does not give the class away.
    return polygon(u, v, int(rng.integers(3, 6))) if rng.random() < 0.5 else radius - 0.9


# --- Composition ---

def coverage(distance_px):
    """Anti-aliased mask: one pixel wide ramp across the outline."""
    return np.clip(0.5 - distance_px, 0.0, 1.0)


def paint(image, mask, colour):
    image += mask[..., None] * (colour - image)


def brighter_colour(rng, others, minimum):
    """A random colour whose brightness exceeds that of each of `others` by `minimum`.

    Shapes are always brighter than the background.  With either sign of the contrast a
    tiny ViT learns far too slowly for a few minutes of training on a CPU.
    """
    floor = min(max(np.mean(o) for o in others) + minimum, 225)
    while True:
        colour = rng.uniform(0, 255, 3)
        if colour.mean() >= floor:
            return colour
        floor -= 1.0  # always ends soon, whatever the others are


def background(rng):
    """Linear gradient between two colours, plus a slow wave."""
    first = rng.uniform(0, 150, 3)
    second = np.clip(first + rng.normal(0, 40, 3), 0, 160)
    angle = rng.uniform(0, 2 * np.pi)
    t = ((XX - SIZE / 2) * np.cos(angle) + (YY - SIZE / 2) * np.sin(angle)) / SIZE + 0.5
    fx, fy, phase = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25), rng.uniform(0, 6.3)
    image = first + np.clip(t, 0, 1)[..., None] * (second - first)
    image += (rng.uniform(0, 14) * np.sin(fx * XX + fy * YY + phase))[..., None]
    return image, first, second


def segment_distance(rng, centre, half_length, half_width):
    angle = rng.uniform(0, np.pi)
    dx, dy = XX - centre[0], YY - centre[1]
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = dy * np.cos(angle) - dx * np.sin(angle)
    return box(along, across, half_length, half_width)


def clutter(image, rng, count):
    """Small discs, specks and line pieces, unrelated to the class."""
    for _ in range(count):
        centre = rng.uniform(0, SIZE, 2)
        kind = rng.integers(3)
        if kind == 0:
            distance = np.hypot(XX - centre[0], YY - centre[1]) - rng.uniform(1.0, 2.8)
        elif kind == 1:
            distance = segment_distance(rng, centre, rng.uniform(1, 3), rng.uniform(1, 3))
        else:
            distance = segment_distance(rng, centre, rng.uniform(4, 12), rng.uniform(0.4, 0.9))
        paint(image, coverage(distance), rng.uniform(0, 255, 3))


def draw(split, index):
    """One image (uint8, SIZE x SIZE x 3) and its class index."""
    rng = np.random.default_rng((SEED, SPLITS[split], index))
    label = index % len(CLASSES)  # balanced classes
    name = CLASSES[label]

    image, first, second = background(rng)
    clutter(image, rng, int(rng.integers(1, 5)))

    # Pose: scale, slight stretch, rotation, and a centre that may push the shape a
    # little over the border.
    radius = rng.uniform(11.0, 20.0)
    stretch = np.exp(rng.uniform(-0.16, 0.16))
    angle = rng.uniform(0, 2 * np.pi)
    cx, cy = SIZE / 2 + rng.uniform(-7, 7, 2)
    dx, dy = XX - cx, YY - cy
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / (radius * stretch)
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / (radius / stretch)

    colour = brighter_colour(rng, [first, second], rng.uniform(50, 130))
    fill = np.broadcast_to(colour, image.shape)
    # Shaded fill, for every class.
    fill = fill + (rng.uniform(-30, 30) * u + rng.uniform(-30, 30) * v)[..., None]
    if name in ("stripes", "checker", "dots"):
        other = colour * rng.uniform(0.1, 0.6, 3)  # the darker colour of the pattern
        period = rng.uniform(5.5, 9.5)  # pixels; long enough to stay visible at this size
        wave = np.sin(2 * np.pi * u * radius / period + rng.uniform(0, 6.3))
        if name == "checker":
            wave = wave * np.sin(2 * np.pi * v * radius / period + rng.uniform(0, 6.3))
        elif name == "dots":
            wave = wave + np.sin(2 * np.pi * v * radius / period + rng.uniform(0, 6.3)) - 0.9
        blend = np.clip(0.5 + 2.5 * wave, 0, 1)[..., None]
        fill = fill + blend * (other - colour)
    mask = coverage(shape_distance(name, u, v, rng) * radius)
    paint(image, mask, fill)

    # In front: a little clutter, and often a bar that hides part of the shape.
    clutter(image, rng, int(rng.integers(0, 3)))
    if rng.random() < 0.4:
        centre = np.array([cx, cy]) + rng.uniform(-0.9, 0.9, 2) * radius
        distance = segment_distance(rng, centre, rng.uniform(8, 40), rng.uniform(1.0, 2.6))
        paint(image, coverage(distance), rng.uniform(0, 255, 3))

    image += rng.normal(0, rng.uniform(2, 12), image.shape)
    # Five bits per channel: noise in the low bits cannot be compressed, and the bundled
    # files should stay small.  Training images are rounded alike.
    image = np.clip(np.round(image / 8.0) * 8.0, 0, 248)
    return image.astype(np.uint8), label


def arrays(split, count, start=0):
    """Images `start .. start + count` of a split, as (N, SIZE, SIZE, 3) uint8, and labels."""
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for i in range(count):
        images[i], labels[i] = draw(split, start + i)
    return images, labels


def write_split(folder, split, count, with_labels):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    lines = []
    images, labels = arrays(split, count)
    # The order of the files is shuffled, or the class would be the last digit of the name.
    order = np.random.default_rng((SEED, SPLITS[split])).permutation(count)
    for position, index in enumerate(order):
        name = f"{position:03d}.png"
        Image.fromarray(images[index]).save(folder / name, optimize=True)
        lines.append(f"{name} {labels[index]}\n")
    if with_labels:
        (folder / "labels.txt").write_text("".join(lines))


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=here, help="folder to write to")
    parser.add_argument("--calib", type=int, default=48, help="number of calibration images")
    parser.add_argument("--eval", type=int, default=256, help="number of evaluation images")
    args = parser.parse_args()
    write_split(args.out / "calib", "calib", args.calib, with_labels=False)
    write_split(args.out / "eval", "eval", args.eval, with_labels=True)
    (args.out / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


if __name__ == "__main__":
    main()
