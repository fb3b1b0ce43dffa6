#!/usr/bin/env python3
"""Trains the tiny ViT of the vitc demo and exports it to ONNX.

    python make_images.py                      # once, the bundled images
    python train.py --checkpoint weights.pt    # train, export model.onnx, measure
    python train.py --checkpoint weights.pt --export-only
                                               # export and measure again, no training

The network is timm's own `VisionTransformer` class in a small size, trained from random
weights, so that the exported graph is what a timm user would feed to vitc.  Training
images come from `make_images.draw("train", ...)`; the bundled calib and eval images are
other splits, and are never trained on.

The seed fixes images, initial weights and batch order.  Floating-point sums still depend
on the CPU and on the number of threads, so a rerun gives a model of about the same
accuracy, not the same bytes.
"""

import argparse
import json
import math
import multiprocessing
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm.layers
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

import make_images

HERE = Path(__file__).resolve().parent
SEED = 1
MEAN = STD = 0.5  # x = (pixel / 255 - 0.5) / 0.5, all channels


def build(fused_attention):
    """The demo network.

    timm reads the fused-attention switch in the constructor.  Fused means
    F.scaled_dot_product_attention; not fused means explicit
    matmul, softmax, matmul, which is also what timm builds with `exportable=True`.
    """
    timm.layers.set_fused_attn(fused_attention)
    return VisionTransformer(
        img_size=make_images.SIZE,
        patch_size=8,
        num_classes=len(make_images.CLASSES),
        embed_dim=96,
        depth=4,
        num_heads=3,
        mlp_ratio=4.0,
        qkv_bias=True,
    )


# --- Training ---

def training_set(count, workers):
    chunk = 500
    jobs = [("train", chunk, start) for start in range(0, count, chunk)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        parts = pool.starmap(make_images.arrays, jobs)
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def normalize(images):
    return (images.float() / 255.0 - MEAN) / STD


def augment(images, generator):
    """Mirror, quarter turns, permuted channels.

    The generator of the images treats all of these alike, so they give new images of
    the very distribution that is evaluated.  One draw per slice of a batch instead of
    one per image keeps this cheap.
    """
    parts = []
    for part in images.chunk(16):
        turn, mirror = torch.randint(0, 4, (2,), generator=generator).tolist()
        part = torch.rot90(part, turn, (2, 3))
        if mirror % 2:
            part = part.flip(3)
        part = part[:, torch.randperm(3, generator=generator)]
        parts.append(part)
    return torch.cat(parts)


def sincos_positions(grid, width):
    """Start values of the learned position embedding.

    timm starts it near zero, so that the neighbourhood of patches has to be discovered
    first.  Sines and cosines of row and column spare a short training that work.
    """
    rows, columns = torch.meshgrid(*(torch.arange(n).float() for n in grid), indexing="ij")
    omega = 1.0 / 100.0 ** (torch.arange(width // 4) / (width // 4))
    phases = [axis.reshape(-1, 1) * omega for axis in (rows, columns)]
    return 0.5 * torch.cat([f(p) for p in phases for f in (torch.sin, torch.cos)], dim=1)


def optimizers(model, lr, weight_decay):
    """Muon for the matrices inside the blocks, AdamW for everything else.

    The training is short, and Muon is meant to make more of each step than AdamW; its
    cost per step is small next to that of the backward pass.
    """
    matrices, other = [], []
    for name, parameter in model.named_parameters():
        inside = name.startswith("blocks.") and parameter.ndim == 2
        (matrices if inside else other).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay,
                         adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def train(args):
    started = time.time()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    images, labels = training_set(args.images, args.threads)
    print(f"{len(labels)} training images drawn, {time.time() - started:.0f} s", flush=True)

    model = build(fused_attention=True)
    with torch.no_grad():
        model.pos_embed[0, 1:] = sincos_positions(model.patch_embed.grid_size, model.embed_dim)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    steps_per_epoch = len(labels) // args.batch
    total = args.epochs * steps_per_epoch
    warmup = min(200, total // 10)
    steppers = optimizers(model, args.lr, args.weight_decay)
    generator = torch.Generator().manual_seed(SEED)
    step, loss_sum, right = 0, 0.0, 0
    for epoch in range(args.epochs):
        order = torch.randperm(len(labels), generator=generator)
        loss_sum, right = 0.0, 0
        for batch in order[: steps_per_epoch * args.batch].split(args.batch):
            # Linear warm-up, then cosine to zero.
            scale = min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / total))
            for stepper in steppers:
                for group in stepper.param_groups:
                    group["lr"] = args.lr * scale
            target = labels[batch]
            logits = model(normalize(augment(images[batch], generator)))
            loss = F.cross_entropy(logits, target, label_smoothing=0.05)
            for stepper in steppers:
                stepper.zero_grad()
            loss.backward()
            for stepper in steppers:
                stepper.step()
            step += 1
            loss_sum += loss.item()
            right += (logits.argmax(1) == target).sum().item()
            if step % 100 == 0:
                print(f"  step {step}/{total} loss {loss.item():.3f}", flush=True)
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {loss_sum / steps_per_epoch:.3f} "
            f"train top-1 {right / steps_per_epoch / args.batch:.4f} "
            f"{time.time() - started:.0f} s", flush=True)
    return model.state_dict()


# --- Export ---

def load(checkpoint, fused_attention):
    model = build(fused_attention)
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return model.eval()


def export(model, path, opset, dynamo=False):
    """Writes `path` with input `input` (batch, 3, H, W) and output `logits` (batch, classes)."""
    example = torch.zeros(2, 3, make_images.SIZE, make_images.SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notes of the TorchScript exporter
        if dynamo:
            torch.onnx.export(
                model, (example,), path, dynamo=True, opset_version=opset,
                input_names=["input"], output_names=["logits"], external_data=False,
                dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
        else:
            torch.onnx.export(
                model, (example,), path, dynamo=False, opset_version=opset,
                input_names=["input"], output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}})
    onnx.checker.check_model(onnx.load(path), full_check=True)


def float_top1(path):
    """Top-1 of onnxruntime on the bundled evaluation images, and the wrong predictions."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = [line.split() for line in (HERE / "eval" / "labels.txt").read_text().splitlines()]
    pixels = np.stack([np.asarray(Image.open(HERE / "eval" / name)) for name, _ in rows])
    batch = ((pixels.astype(np.float32) / 255.0 - MEAN) / STD).transpose(0, 3, 1, 2)
    logits = session.run(None, {"input": np.ascontiguousarray(batch)})[0]
    labels = np.array([int(label) for _, label in rows])
    return float((logits.argmax(1) == labels).mean()), logits


def export_variants(checkpoint, folder, reference):
    """The same weights through other opsets and exporters, to test an ONNX importer with."""
    folder.mkdir(parents=True, exist_ok=True)
    variants = [(f"demo_op{opset}", False, opset, False) for opset in (13, 14, 16, 17)]
    # F.scaled_dot_product_attention has no TorchScript export below opset 14.
    variants += [(f"demo_op{opset}_sdpa", True, opset, False) for opset in (14, 16, 17)]
    variants += [("demo_dynamo", False, 18, True), ("demo_dynamo_sdpa", True, 18, True)]
    for name, fused, opset, dynamo in variants:
        path = folder / f"{name}.onnx"
        export(load(checkpoint, fused), str(path), opset, dynamo)
        top1, logits = float_top1(str(path))
        difference = np.abs(logits - reference).max()
        print(f"{path.name}: top-1 {top1:.4f}, largest logit difference {difference:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights file (.pt)")
    parser.add_argument("--export-only", action="store_true", help="use existing weights")
    parser.add_argument("--variants", type=Path, metavar="FOLDER",
                        help="also write exports by other opsets and exporters here")
    parser.add_argument("--images", type=int, default=24_000, help="training images to draw")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    if not args.export_only:
        torch.save(train(args), args.checkpoint)
    path = HERE / "model.onnx"
    export(load(args.checkpoint, fused_attention=False), str(path), opset=17)
    top1, logits = float_top1(str(path))
    print(f"{path.name}: {path.stat().st_size} bytes, float top-1 {top1:.4f}")
    (HERE / "expected.json").write_text(json.dumps({"float_top1": top1}) + "\n")
    if args.variants:
        export_variants(args.checkpoint, args.variants, logits)


if __name__ == "__main__":
    main()
