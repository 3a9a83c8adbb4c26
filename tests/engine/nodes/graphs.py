"""Graphs that the built-in nodes and the real ComfyUI must give the same pixels for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from easel.workflow.types import Prompt

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")


@dataclass(frozen=True)
class Step:
    """A node whose inputs may be other steps; `output` is the one that is used."""

    class_type: str
    inputs: dict[str, Any]
    output: int = 0

    def out(self, output: int) -> Step:
        return Step(self.class_type, self.inputs, output)


def step(class_type: str, **inputs: Any) -> Step:
    return Step(class_type, inputs)


@dataclass(frozen=True)
class Case:
    """Named outputs of a graph: kind ``image``, ``mask`` or ``text``, and what makes it."""

    name: str
    outputs: tuple[tuple[str, Step], ...]
    large: bool = False
    """Too large for a stored expectation: compared with the real ComfyUI only."""

    def prompt(self) -> tuple[Prompt, list[str]]:
        """Return the prompt and the ids of its output nodes."""
        prompt: Prompt = {}
        ids: dict[int, str] = {}

        def add(made: Step) -> str:
            key = id(made.inputs)
            if key not in ids:
                inputs = {
                    name: [add(value), value.output] if isinstance(value, Step) else value
                    for name, value in made.inputs.items()
                }
                ids[key] = str(len(ids) + 1)
                prompt[ids[key]] = {"class_type": made.class_type, "inputs": inputs}
            return ids[key]

        targets = []
        for kind, made in self.outputs:
            if kind == "text":
                shown = step("PreviewAny", source=made)
            else:
                image = step("MaskToImage", mask=made) if kind == "mask" else made
                shown = step("SaveImage", images=image, filename_prefix="parity")
            targets.append(add(shown))
        return prompt, targets


def load(name: str) -> Step:
    return step("LoadImage", image=name)


RGB, OTHER, RGBA, WIDE, GREY = (
    load(f"{name}.png") for name in ("rgb", "other", "rgba", "wide", "grey")
)
MASK = step("LoadImageMask", image="rgba.png", channel="alpha")
SOFT = step("LoadImageMask", image="grey.png", channel="red")
PHOTO, TALL = load("photo.png"), load("tall.png")
BATCH = step("ImageBatch", image1=RGB, image2=OTHER)


def write_inputs(folder: Path) -> None:
    """Write the pictures the graphs load: deterministic, small, of odd sizes."""
    random = np.random.default_rng(42)

    def noise(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return random.integers(0, 256, shape, dtype=np.uint8)

    def smooth(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / a + y / b) for a, b in ((9, 23), (17, 7), (31, 13))]
        return np.asarray(127.5 + 127 * np.stack(waves, axis=-1), np.uint8)

    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Image.Image] = {
        "rgb.png": Image.fromarray(noise(9, 13, 3)),
        "other.png": Image.fromarray(noise(9, 13, 3)),
        "rgba.png": Image.fromarray(noise(11, 8, 4)),
        "wide.png": Image.fromarray(smooth(6, 17)),
        "grey.png": Image.fromarray(noise(7, 10)),
        "tiny.png": Image.fromarray(noise(2, 2, 3)),
        "deep.png": Image.fromarray(
            (noise(7, 5).astype(np.uint16) << 8) | noise(7, 5).astype(np.uint16)
        ),
        "palette.png": Image.fromarray(noise(9, 13, 3)).quantize(16),
        "grey-alpha.png": Image.fromarray(noise(9, 13, 2), mode="LA"),
        "bits.png": Image.fromarray(noise(9, 13)).convert("1"),
        "photo.png": Image.fromarray(np.clip(smooth(211, 301) + (noise(211, 301, 3) >> 4), 0, 255)),
        "tall.png": Image.fromarray(noise(307, 103, 3)),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    clear = Image.fromarray(noise(9, 13, 3)).quantize(16)
    clear.save(folder / "clear.png", transparency=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(smooth(12, 20))
    turned.save(folder / "turned.jpg", quality=95, exif=exif)
    frames = [Image.fromarray(noise(6, 7, 3)) for _ in range(3)]
    frames[0].save(
        folder / "moving.webp", save_all=True, append_images=frames[1:], lossless=True, duration=100
    )
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    mixed = [Image.new("RGB", (5, 4), (9, 9, 9)), Image.new("RGBA", (5, 4), (255, 0, 0, 0))]
    mixed[0].save(folder / "mixed.gif", save_all=True, append_images=mixed[1:])
    Image.fromarray(noise(1, 40, 3)).save(folder / "line.png")
    cmyk = Image.fromarray(noise(9, 13, 3)).convert("CMYK")
    cmyk.save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(noise(9, 13).astype(np.float32) / 255).save(folder / "float.tiff")


FILES = (
    "rgb.png", "rgba.png", "grey.png", "deep.png", "palette.png", "clear.png", "grey-alpha.png", "bits.png",
    "turned.jpg", "moving.webp", "moving.png", "moving.gif", "cmyk.jpg", "mixed.gif", "float.tiff",
)  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield every case."""
    for group in (
        _loading, _scaling, _transforms, _batches, _filters, _quantizing, _masks, _compositing, _texts, _large,
    ):  # fmt: skip
        yield from group()


def _image(name: str, made: Step, **more: Any) -> Case:
    return Case(name, (("image", made),), **more)


def _mask(name: str, made: Step) -> Case:
    return Case(name, (("mask", made),))


def _loading() -> Iterator[Case]:
    for file in FILES:
        loaded = load(file)
        yield Case(f"load {file}", (("image", loaded), ("mask", loaded.out(1))))
        for channel in ("alpha", "green"):
            made = step("LoadImageMask", image=file, channel=channel)
            yield _mask(f"load {channel} of {file}", made)
    for color in (0, 0xFF8001, 0x7F7F7F):
        made = step("EmptyImage", width=5, height=3, batch_size=2, color=color)
        yield _image(f"empty {color:06x}", made)
    yield _image("invert", step("ImageInvert", image=RGB))
    yield _image(
        "invert rgba", step("ImageInvert", image=step("JoinImageWithAlpha", image=RGB, alpha=MASK))
    )
    size = step("GetImageSize", image=BATCH)
    yield Case("size", tuple(("text", size.out(index)) for index in range(3)))


def _scaling() -> Iterator[Case]:
    for method in METHODS:
        for width, height in ((13, 9), (26, 18), (7, 4), (20, 5), (1, 1), (31, 0), (0, 5)):
            made = step(
                "ImageScale",
                image=RGB,
                upscale_method=method,
                width=width,
                height=height,
                crop="disabled",
            )
            yield _image(f"scale {method} {width}x{height}", made)
        for width, height in ((8, 8), (5, 16), (30, 3)):
            made = step(
                "ImageScale",
                image=WIDE,
                upscale_method=method,
                width=width,
                height=height,
                crop="center",
            )
            yield _image(f"scale {method} {width}x{height} center", made)
        for by in (0.33, 1.5, 2.71):
            made = step("ImageScaleBy", image=BATCH, upscale_method=method, scale_by=by)
            yield _image(f"scale {method} by {by}", made)
        made = step("ImageScaleToMaxDimension", image=WIDE, upscale_method=method, largest_size=11)
        yield _image(f"scale {method} to longest", made)
        alpha = step("JoinImageWithAlpha", image=RGB, alpha=MASK)
        made = step("ImageScaleBy", image=alpha, upscale_method=method, scale_by=1.7)
        yield _image(f"scale {method} rgba", made)
        made = step("ImageScaleToTotalPixels", image=RGB, upscale_method=method, megapixels=0.01)
        yield _image(f"scale {method} to megapixels", made, large=True)
        for color, width, height in (("white", 16, 9), ("black", 5, 12)):
            made = step(
                "ResizeAndPadImage",
                image=RGB,
                target_width=width,
                target_height=height,
                padding_color=color,
                interpolation=method,
            )
            yield _image(f"pad {method} to {width}x{height}", made)
    made = step(
        "ResizeAndPadImage",
        image=load("line.png"),
        target_width=3,
        target_height=50,
        padding_color="white",
        interpolation="area",
    )
    yield _image("pad a line to a column", made)
    yield _image(
        "scale to nothing given",
        step("ImageScale", image=RGB, upscale_method="area", width=0, height=0, crop="center"),
    )
    yield _image(
        "scale to longest, square",
        step(
            "ImageScaleToMaxDimension",
            image=load("tiny.png"),
            upscale_method="area",
            largest_size=5,
        ),
    )


def _transforms() -> Iterator[Case]:
    for width, height, x, y in ((5, 4, 2, 3), (100, 100, 6, 1), (3, 3, 50, 60)):
        made = step("ImageCrop", image=RGB, width=width, height=height, x=x, y=y)
        yield _image(f"crop {width}x{height}+{x}+{y}", made)
    for rotation in ("none", "90 degrees", "180 degrees", "270 degrees"):
        yield _image(f"rotate {rotation}", step("ImageRotate", image=RGB, rotation=rotation))
    for method in ("x-axis: vertically", "y-axis: horizontally"):
        yield _image(f"flip {method}", step("ImageFlip", image=RGB, flip_method=method))
    for left, top, right, bottom, feathering in (
        (8, 0, 0, 0, 3), (8, 16, 8, 8, 2), (0, 0, 0, 8, 4), (8, 8, 8, 8, 40), (0, 8, 8, 0, 1), (8, 0, 8, 0, 0)
    ):  # fmt: skip
        made = step(
            "ImagePadForOutpaint",
            image=BATCH,
            left=left,
            top=top,
            right=right,
            bottom=bottom,
            feathering=feathering,
        )
        name = f"outpaint {left} {top} {right} {bottom} feather {feathering}"
        yield Case(name, (("image", made), ("mask", made.out(1))))
    for direction in ("right", "down", "left", "up"):
        for match in (True, False):
            for color, width in (("white", 0), ("red", 4), ("black", 2)):
                made = step(
                    "ImageStitch",
                    image1=RGB,
                    image2=WIDE,
                    direction=direction,
                    match_image_size=match,
                    spacing_width=width,
                    spacing_color=color,
                )
                yield _image(f"stitch {direction} match {match} {color} {width}", made)
    made = step(
        "ImageStitch",
        image1=BATCH,
        image2=step("JoinImageWithAlpha", image=WIDE, alpha=MASK),
        direction="right",
        match_image_size=True,
        spacing_width=2,
        spacing_color="blue",
    )
    yield _image("stitch batch and alpha", made)


def _batches() -> Iterator[Case]:
    yield _image("batch of two sizes", step("ImageBatch", image1=RGB, image2=WIDE))
    yield _image("repeat", step("RepeatImageBatch", image=BATCH, amount=3))
    for index, length in ((0, 1), (1, 5), (9, 2)):
        made = step("ImageFromBatch", image=BATCH, batch_index=index, length=length)
        yield _image(f"from batch {index} {length}", made)


def _filters() -> Iterator[Case]:
    modes = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")
    for mode in modes:
        for factor in (0.5, 1.0):
            made = step(
                "ImageBlend", image1=RGB, image2=OTHER, blend_factor=factor, blend_mode=mode
            )
            yield _image(f"blend {mode} {factor}", made)
        made = step("ImageBlend", image1=RGB, image2=WIDE, blend_factor=0.7, blend_mode=mode)
        yield _image(f"blend {mode} other size", made)
    for name, one, other in (("one", BATCH, RGB), ("two", RGB, BATCH)):
        made = step("ImageBlend", image1=one, image2=other, blend_factor=0.5, blend_mode="screen")
        yield _image(f"blend batches {name}", made)
    alpha = step("JoinImageWithAlpha", image=OTHER, alpha=MASK)
    made = step("ImageBlend", image1=RGB, image2=alpha, blend_factor=0.4, blend_mode="screen")
    yield _image("blend onto alpha", made)
    for radius, sigma in ((1, 1.0), (2, 0.3), (4, 10.0), (5, 0.7)):
        yield _image(
            f"blur {radius} {sigma}",
            step("ImageBlur", image=BATCH, blur_radius=radius, sigma=sigma),
        )
        for alpha_amount in (0.3, 5.0):
            made = step(
                "ImageSharpen", image=RGB, sharpen_radius=radius, sigma=sigma, alpha=alpha_amount
            )
            yield _image(f"sharpen {radius} {sigma} {alpha_amount}", made)
    for operation in ("erode", "dilate", "open", "close", "gradient", "bottom_hat", "top_hat"):
        for size in (3, 4, 7):
            made = step("Morphology", image=BATCH, operation=operation, kernel_size=size)
            yield _image(f"morphology {operation} {size}", made)
    yuv = step("ImageRGBToYUV", image=RGB)
    yield Case("to yuv", tuple(("image", yuv.out(index)) for index in range(3)))
    made = step("ImageYUVToRGB", Y=yuv.out(0), U=yuv.out(1), V=yuv.out(2))
    yield _image("to yuv and back", made)
    yield _image(
        "from yuv", step("ImageYUVToRGB", Y=RGB, U=OTHER, V=step("ImageInvert", image=RGB))
    )
    for seed in (0, 1, 2**32 + 5, 2**64 - 1):
        for name, image in (("rgb", RGB), ("batch", BATCH), ("tiny", load("tiny.png"))):
            made = step("ImageAddNoise", image=image, seed=seed, strength=0.3)
            yield _image(f"noise {seed} {name}", made)


def _quantizing() -> Iterator[Case]:
    for dither in ("none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"):
        for colors in (2, 7, 64):
            made = step("ImageQuantize", image=BATCH, colors=colors, dither=dither)
            yield _image(f"quantize {dither} {colors}", made)


def _masks() -> Iterator[Case]:
    for channel in ("red", "green", "blue"):
        yield _mask(f"mask of {channel}", step("ImageToMask", image=BATCH, channel=channel))
    alpha = step("JoinImageWithAlpha", image=RGB, alpha=MASK)
    yield _mask("mask of alpha", step("ImageToMask", image=alpha, channel="alpha"))
    two = step("EmptyImage", width=3, height=3, batch_size=1, color=0x123456)
    both = step("ImageBatch", image1=two, image2=step("ImageInvert", image=two))
    yield _mask("mask of a colour", step("ImageColorToMask", image=both, color=0x123456))
    solid = step("SolidMask", value=0.37, width=5, height=6)
    yield _mask("solid", solid)
    yield _mask("invert mask", step("InvertMask", mask=SOFT))
    yield _mask("crop mask", step("CropMask", mask=SOFT, x=3, y=2, width=50, height=3))
    for operation in ("multiply", "add", "subtract", "and", "or", "xor"):
        for x, y in ((0, 0), (4, 3), (50, 50)):
            made = step(
                "MaskComposite", destination=SOFT, source=MASK, x=x, y=y, operation=operation
            )
            yield _mask(f"combine {operation} {x} {y}", made)
    for left, top, right, bottom in (
        (3, 0, 0, 0),
        (0, 0, 4, 0),
        (0, 2, 0, 3),
        (1, 1, 1, 1),
        (99, 99, 99, 99),
    ):
        made = step("FeatherMask", mask=SOFT, left=left, top=top, right=right, bottom=bottom)
        yield _mask(f"feather {left} {top} {right} {bottom}", made)
    for expand in (0, 1, 2, 3, 5, 30, -1, -2, -4):
        for tapered in (True, False):
            made = step("GrowMask", mask=SOFT, expand=expand, tapered_corners=tapered)
            yield _mask(f"grow {expand} tapered {tapered}", made)
    for value in (0.0, 0.5, 1.0):
        yield _mask(f"threshold {value}", step("ThresholdMask", mask=SOFT, value=value))


def _compositing() -> Iterator[Case]:
    for x, y, resize, mask in (
        (0, 0, False, None), (5, 2, False, None), (99, 0, False, None), (3, 3, False, SOFT), (0, 0, True, SOFT),
        (4, 1, True, MASK),
    ):  # fmt: skip
        inputs = {"destination": BATCH, "source": WIDE, "x": x, "y": y, "resize_source": resize}
        if mask is not None:
            inputs["mask"] = mask
        made = Step("ImageCompositeMasked", inputs)
        name = "none" if mask is None else mask.inputs["image"]
        yield _image(f"composite {x} {y} resize {resize} mask {name}", made)
    alpha = step("JoinImageWithAlpha", image=OTHER, alpha=MASK)
    made = step(
        "ImageCompositeMasked", destination=RGB, source=alpha, x=1, y=1, resize_source=False
    )
    yield _image("composite alpha onto none", made)
    yield _image("join alpha", alpha)
    split = step("SplitImageWithAlpha", image=alpha)
    yield Case("split alpha", (("image", split), ("mask", split.out(1))))
    split = step("SplitImageWithAlpha", image=RGB)
    yield Case("split without alpha", (("image", split), ("mask", split.out(1))))
    modes = (
        "ADD", "CLEAR", "DARKEN", "DST", "DST_ATOP", "DST_IN", "DST_OUT", "DST_OVER", "LIGHTEN", "MULTIPLY",
        "OVERLAY", "SCREEN", "SRC", "SRC_ATOP", "SRC_IN", "SRC_OUT", "SRC_OVER", "XOR",
    )  # fmt: skip
    for mode in modes:
        for name, source in (("same size", OTHER), ("other size", WIDE)):
            made = step(
                "PorterDuffImageComposite",
                source=source,
                source_alpha=SOFT,
                destination=RGB,
                destination_alpha=MASK,
                mode=mode,
            )
            yield Case(f"porter-duff {mode} {name}", (("image", made), ("mask", made.out(1))))


def _texts() -> Iterator[Case]:
    def text(name: str, class_type: str, **inputs: Any) -> Case:
        return Case(name, (("text", step(class_type, **inputs)),))

    yield text("string", "PrimitiveString", value="a\nb é")
    yield text("multiline", "PrimitiveStringMultiline", value="a\nb")
    yield text("int", "PrimitiveInt", value=2**62)
    yield text("float", "PrimitiveFloat", value=0.1)
    yield text("boolean", "PrimitiveBoolean", value=True)
    yield text("concatenate", "StringConcatenate", string_a="a", string_b="b", delimiter=", ")
    for start, end in ((1, 3), (-2, 99), (3, 1)):
        yield text(
            f"substring {start} {end}", "StringSubstring", string="héllo", start=start, end=end
        )
    yield text("length", "StringLength", string="héllo")
    for mode in ("UPPERCASE", "lowercase", "Capitalize", "Title Case"):
        yield text(f"case {mode}", "CaseConverter", string="the ÉASEL, it's ß", mode=mode)
    for mode in ("Both", "Left", "Right"):
        yield text(f"trim {mode}", "StringTrim", string=" \ta b \n", mode=mode)
    yield text("replace", "StringReplace", string="a.b.c", find=".", replace="--")
    for sensitive in (True, False):
        yield text(
            f"contains {sensitive}",
            "StringContains",
            string="Easel",
            substring="eas",
            case_sensitive=sensitive,
        )
        for mode in ("Starts With", "Ends With", "Equal"):
            yield text(
                f"compare {mode} {sensitive}",
                "StringCompare",
                string_a="Easel",
                string_b="easel",
                mode=mode,
                case_sensitive=sensitive,
            )
    flags = {"case_insensitive": True, "multiline": True, "dotall": False}
    for number, pattern in enumerate((r"^b", r"(", r"A.b", r"(\d)(x)?")):
        string = "a\nb 1 2x\nA-b"
        yield text(f"match {number}", "RegexMatch", string=string, regex_pattern=pattern, **flags)
        for mode in ("First Match", "All Matches", "First Group", "All Groups"):
            for group in (0, 1, 2):
                if mode == "All Groups" and group == 2 and number == 3:
                    continue  # joining a group that took no part fails, in both
                yield text(
                    f"extract {number} {mode} {group}",
                    "RegexExtract",
                    string=string,
                    regex_pattern=pattern,
                    mode=mode,
                    group_index=group,
                    **flags,
                )
    yield text(
        "regex replace",
        "RegexReplace",
        string="aAbB",
        regex_pattern="([ab])",
        replace=r"<\1>",
        case_insensitive=False,
        count=1,
    )
    yield text(
        "regex replace, defaults", "RegexReplace", string="aAbB", regex_pattern="a", replace="-"
    )


def _large() -> Iterator[Case]:
    def large(name: str, made: Step) -> Case:
        return _image(f"large {name}", made, large=True)

    for method in METHODS:
        for width, height in ((512, 512), (77, 93), (602, 211), (33, 400)):
            made = step(
                "ImageScale",
                image=PHOTO,
                upscale_method=method,
                width=width,
                height=height,
                crop="center",
            )
            yield large(f"scale {method} {width}x{height}", made)
        yield large(
            f"scale {method} by 7.77",
            step("ImageScaleBy", image=TALL, upscale_method=method, scale_by=7.77),
        )
    for radius, sigma in ((31, 0.5), (31, 10.0), (12, 1.0)):
        yield large(
            f"blur {radius} {sigma}",
            step("ImageBlur", image=PHOTO, blur_radius=radius, sigma=sigma),
        )
        made = step("ImageSharpen", image=PHOTO, sharpen_radius=radius, sigma=sigma, alpha=2.0)
        yield large(f"sharpen {radius} {sigma}", made)
    for dither in ("none", "floyd-steinberg", "bayer-16"):
        yield large(
            f"quantize {dither}", step("ImageQuantize", image=PHOTO, colors=31, dither=dither)
        )
    yield large("noise", step("ImageAddNoise", image=PHOTO, seed=77, strength=0.5))
    yield large("morphology", step("Morphology", image=PHOTO, operation="close", kernel_size=21))
    mask = step("ImageToMask", image=PHOTO, channel="red")
    for tapered in (True, False):
        grown = step("GrowMask", mask=mask, expand=17, tapered_corners=tapered)
        yield Case(f"large grow {tapered}", (("mask", grown),), large=True)


def png_bytes(samples: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Encode samples for storing."""
    sink = io.BytesIO()
    Image.fromarray(samples).save(sink, format="PNG", optimize=True)
    return sink.getvalue()


CaseGroup = Callable[[], Iterator[Case]]
