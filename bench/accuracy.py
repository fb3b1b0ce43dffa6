#!/usr/bin/env python3
"""Every table of docs/accuracy.md that compiled models fill: compiles, evaluates, prints Markdown.

    python3 bench/accuracy.py SHARED [--vitc target/release/vitc] [--only SUBSTRING] [--mixed]

SHARED is the folder with `models/` and `data/` (see the README's "Accuracy"). Nothing but Python's own library is needed.
A row is a model, the flags of `vitc compile`, and the images; what fails is told in its row, and the rest goes on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEIT = {
    "model": "models/deit_tiny_imagenet.ts.matmul.onnx",
    "data": "data/imagenet",
    "image": ["--resize", "248"],
}
CIFAR = ["--mean", ".4914,.4822,.4465", "--std", ".2470,.2435,.2616"]
NANO = {
    "model": "models/cifar10/efficientvit_nano.ts.onnx",
    "data": "data/cifar10",
    "image": ["--resize", "64", "--filter", "bilinear", *CIFAR],
}
SWIN = {"model": "models/cifar10/swin_nano.ts.onnx", "data": "data/cifar10", "image": ["--resize", "32", *CIFAR]}
MNIST = {
    "model": "models/vit_mnist/vit_mnist_researchase_MIT.ts.onnx",
    "data": "data/mnist",
    "image": ["--resize", "28", "--filter", "bilinear", "--mean", "0.1307", "--std", "0.3081"],
}


def bits(weights, activations=8):
    flags = ["--weight-bits", str(weights)] if weights != 8 else []
    return flags + (["--activation-bits", str(activations)] if activations != 8 else [])


PLAIN = ["--observer", "min-max", "--without", "all"]
# title: rows of (what, model, flags)
TABLES = {
    "DeiT-tiny, forms": [
        ("auto", DEIT, []),
        ("shift (I-ViT)", DEIT, ["--nonlinear", "shift"]),
        ("ibert (I-BERT)", DEIT, ["--nonlinear", "ibert"]),
    ],
    "DeiT-tiny, what each transform contributes": [
        ("nothing left out", DEIT, []),
        *((f"without {t}", DEIT, ["--without", t]) for t in ("smooth", "values", "balance", "rows")),
        ("plain min-max", DEIT, PLAIN),
    ],
    "DeiT-tiny, smoothing": [(s, DEIT, ["--smoothing", s]) for s in ("sq-b", "smoothquant", "repq")],
    "DeiT-tiny, fewer bits": [(f"W{w}A{a}", DEIT, bits(w, a)) for w, a in ((8, 8), (6, 6), (4, 8), (5, 5), (4, 4))],
    "DeiT-tiny, codes at 4 bits": [
        (c, DEIT, [*bits(4, 4), "--codes", c]) for c in ("auto", "uniform", "opt-m", "lloyd", "log2", "log-sqrt2")
    ],
    "DeiT-tiny, ranges by the error of products": [
        (f"W{b}A{b} {c} {o}", DEIT, [*bits(b, b), "--codes", c, "--observer", o])
        for b, c in ((8, "auto"), (6, "uniform"), (4, "uniform"), (4, "opt-m"))
        for o in ("auto", "output")
    ],
    "DeiT-tiny, rounding of weights": [
        (f"W{w}A8 {r}", DEIT, [*bits(w), "--rounding", r]) for w in (8, 4) for r in ("nearest", "gptq")
    ],
    "Small models": [
        (f"{name}, {what}", model, flags)
        for name, model in (("MNIST ViT", MNIST), ("Swin nano", SWIN), ("EfficientViT nano", NANO))
        for what, flags in (("auto", []), ("plain min-max", PLAIN))
    ],
    "EfficientViT nano, transforms and bits": [
        (f"W{w}A{a}{' without all' if left else ''}", NANO, bits(w, a) + left)
        for w, a in ((8, 8), (6, 6), (8, 6), (4, 8))
        for left in ([], ["--without", "all"])
    ],
}
MIXED = {
    "DeiT-tiny, mixed precision": [
        ("--target-bits 5", DEIT, ["--mixed", "--target-bits", "5"]),
        ("--target-bytes 4M", DEIT, ["--mixed", "--target-bytes", "4M"]),
        ("--max-drop 0.5", DEIT, ["--mixed", "--max-drop", "0.5"]),
    ]
}


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")
    return done.stdout


def measure(vitc, shared, model, flags, artifact):
    """The evaluation's figures, and the seconds that compiling took."""
    source, data = shared / model["model"], shared / model["data"]
    calibration = ["--calibrate", data / "calib", *model["image"]]
    start = time.monotonic()
    run([vitc, "compile", source, *calibration, *flags, "-o", artifact, "-q"])
    seconds = time.monotonic() - start
    images = ["--images", data / "eval", "--labels", data / "eval" / "labels.txt"]
    return json.loads(run([vitc, "eval", artifact, *images, "--reference", source, "--json", "-q"])), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--vitc", type=Path, default=Path("target/release/vitc"))
    parser.add_argument("--only", default="", help="tables whose title has this in it")
    parser.add_argument("--mixed", action="store_true", help="the searches as well, which take minutes each")
    args = parser.parse_args()
    tables = {**TABLES, **(MIXED if args.mixed else {})}
    for title, rows in tables.items():
        if args.only not in title:
            continue
        print(f"\n### {title}\n\n| | top-1 | float top-1 | agreement | logit SQNR | median ms | compiled in |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for what, model, flags in rows:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    d, s = measure(args.vitc, args.shared, model, flags, Path(folder) / "a.vitc")
                except (RuntimeError, OSError) as problem:
                    print(f"| {what} | failed: {problem} |", flush=True)
                    continue
            print(
                f"| {what} | {d['top1']:.1f} | {d['reference_top1']:.1f} | {d['agreement']:.1f} "
                f"| {d['logit_sqnr_db']:.2f} dB | {d['median_ms']:.2f} | {s:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
