"""Writes the goldens of this folder with Pillow: `python generate.py` (needs numpy and pillow before 13, which
changed the order of the passes for tall images). Seeded; the JPEG may differ between libjpeg versions, the rest not."""
import numpy as np
from PIL import Image

rng = np.random.default_rng(7)


def pattern(width, height, channels):
    """The pattern of resample.rs: blocks of noise and of black or white."""
    state, out = 1, bytearray()
    for at in range(width * height * channels):
        state = (state * 1664525 + 1013904223) % 2**32
        x, y, noise = (at // channels) % width, at // channels // width, state >> 24
        out.append(noise if (x // 5 + y // 3) % 2 == 0 else (noise & 1) * 255)
    array = np.frombuffer(bytes(out), np.uint8).reshape(height, width, channels)
    return Image.fromarray(array if channels == 3 else array[:, :, 0])


def fnv1a(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 % 2**64
    return f"{h:016x}"


def resize_goldens():
    cases = [(37, 29, 8, 8), (37, 29, 36, 28), (37, 29, 38, 30), (37, 29, 111, 87), (64, 48, 21, 16), (5, 7, 224, 3),
             (1, 1, 9, 4), (2, 3, 17, 11), (100, 3, 7, 3), (3, 100, 3, 7), (97, 101, 13, 17), (200, 150, 74, 56),
             (300, 20, 1, 1), (28, 28, 32, 32), (32, 32, 64, 64), (320, 240, 298, 224)]
    lines = ["# width height channels -> width height filter: FNV-1a of Pillow's pixels"]
    for w, h, ow, oh in cases:
        for channels in (1, 3):
            image = pattern(w, h, channels)
            for name in ("bicubic", "bilinear"):
                out = image.resize((ow, oh), Image.Resampling[name.upper()])
                lines.append(f"{w} {h} {channels} {ow} {oh} {name} {fnv1a(out.tobytes())}")
    open("resize.txt", "w").write("\n".join(lines) + "\n")


def centre_crop(image, height, width):
    """torchvision.transforms.functional.center_crop."""
    w, h = image.size
    if width > w or height > h:
        padded = Image.new(image.mode, (max(w, width), max(h, height)))
        padded.paste(image, (max(0, (width - w) // 2), max(0, (height - h) // 2)))
        image, (w, h) = padded, padded.size
    top, left = int(round((h - height) / 2.0)), int(round((w - width) / 2.0))
    return image.crop((left, top, left + width, top + height))


def preprocess(image, mode, short, crop, name):
    """convert, torchvision Resize(short), CenterCrop(crop)."""
    image = image.convert(mode)
    w, h = image.size
    size = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    return centre_crop(image.resize(size, Image.Resampling[name.upper()]), *crop)


def files():
    noise = rng.integers(0, 256, (11, 14, 4), dtype=np.uint8)
    Image.fromarray(noise[:, :, :3]).save("rgb.png")
    Image.fromarray(noise).save("rgba.png")
    Image.fromarray(noise[:, :, 0]).save("grey.png")
    Image.fromarray(noise[:, :, :2].copy(), "LA").save("grey_alpha.png")
    Image.fromarray(noise[:, :, 0] > 127).save("bilevel.png")
    indexed = Image.frombytes("P", (14, 11), (noise[:, :, 0] % 7).tobytes())
    indexed.putpalette(noise[0, :7, :3].tobytes())
    indexed.save("palette.png", transparency=3)
    wide = (noise[:, :, 0].astype(np.uint16) << 8) | noise[:, :, 1]
    Image.fromarray(wide).save("grey16.png")
    y, x = np.mgrid[0:23, 0:30]
    smooth = np.stack([x * 8, y * 11, 255 - x * 4 - y * 5], -1).astype(np.uint8)
    Image.fromarray(smooth).save("smooth.jpg", quality=92, subsampling=0, exif=Image.Exif())


def file_goldens():
    """One line a case: file mode short crop-height crop-width filter, then the hash of the interleaved pixels."""
    names = ["rgb.png", "rgba.png", "grey.png", "grey_alpha.png", "bilevel.png", "palette.png"]
    shapes = [(9, (7, 7), "bicubic"), (16, (16, 20), "bilinear"), (6, (8, 9), "bicubic"), (11, (10, 11), "bicubic")]
    lines = ["# file mode short-side crop-height crop-width filter: FNV-1a of the interleaved pixels"]
    for name in names:
        for mode in ("RGB", "L"):
            for short, crop, kernel in shapes:
                out = preprocess(Image.open(name), mode, short, crop, kernel)
                lines.append(f"{name} {mode} {short} {crop[0]} {crop[1]} {kernel} {fnv1a(out.tobytes())}")
    open("files.txt", "w").write("\n".join(lines) + "\n")
    open("smooth.rgb", "wb").write(Image.open("smooth.jpg").convert("RGB").tobytes())
    np.savez("stored.npz", a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.array([-1, 5], np.int64))
    np.savez_compressed("deflated.npz", zeros=np.zeros((40, 50), np.float64), c=np.array([200, 3], np.uint8))
    np.save("scalar.npy", np.float32(2.5))


resize_goldens()
files()
file_goldens()
