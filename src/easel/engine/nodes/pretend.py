"""The pretend pack: text-to-image without a model.

Stand-ins under ComfyUI's names whose declarations, progress and previews are the real ones', so that an ordinary
text-to-image workflow runs. What comes out is a pattern that seed and prompt determine, and no picture of anything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from easel.engine.folders import Folders
from easel.engine.node import Input, NodeContext, Output, Registry
from easel.engine.nodes.declare import IMAGE_OUT, integer, real
from easel.engine.nodes.declare import MAX_RESOLUTION as MOST
from easel.engine.nodes.pixels import Pixels, picture
from easel.engine.nodes.resample import scale

registry = Registry()

MODEL_SUFFIXES = (".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft")
PIXELS_PER_LATENT = 8
CHANNELS = 4
STEP_SECONDS = 0.02
STEP_SECONDS_PER_LATENT = 1.2e-5
"""512x512 pixels, 64x64 latents, take 0.07 s a step."""

Latent: TypeAlias = Mapping[str, Any]
"""``samples``: float32 ``[batch, channels, height / 8, width / 8]``."""
Conditioning: TypeAlias = Sequence[tuple[str, Mapping[str, Any]]]

_PRETENDED = "Pretended: no model runs here."


@dataclass(frozen=True, slots=True)
class PretendedModel:
    """What passes for MODEL, CLIP and VAE: the name of a checkpoint file."""

    name: str


def checkpoints(folders: Folders) -> list[str]:
    """List model files below ``models/checkpoints``, sub-folders included, as ComfyUI names them."""
    root = folders.models / "checkpoints"
    found: list[str] = []
    for folder, _folders, files in os.walk(root, followlinks=True):
        below = os.path.relpath(folder, root)
        found.extend(
            os.path.normpath(f"{below}/{file}")
            for file in files
            if file.lower().endswith(MODEL_SUFFIXES)
        )
    return sorted(found)


@registry.node(
    "CheckpointLoaderSimple",
    display_name="Load Checkpoint",
    category="loaders",
    description=f"{_PRETENDED} The file's name is passed on, the file is not read.",
    required={"ckpt_name": Input(checkpoints, {})},
    outputs=(Output("MODEL"), Output("CLIP"), Output("VAE")),
)
def checkpoint_loader_simple(
    _context: NodeContext, ckpt_name: str
) -> tuple[PretendedModel, PretendedModel, PretendedModel]:
    """Pretend to load a checkpoint."""
    model = PretendedModel(ckpt_name)
    return (model, model, model)


@registry.node(
    "CLIPTextEncode",
    display_name="CLIP Text Encode (Prompt)",
    category="conditioning",
    description=f"{_PRETENDED} The text only enters the seed of the pattern.",
    required={
        "text": Input("STRING", {"multiline": True, "dynamicPrompts": True}),
        "clip": Input("CLIP", {}),
    },
    outputs=(Output("CONDITIONING"),),
)
def clip_text_encode(_context: NodeContext, text: str, clip: PretendedModel) -> tuple[Conditioning]:
    """Pretend to encode a text."""
    return ([(text, {"model": clip.name})],)


def _empty(channels: int, width: int, height: int, batch_size: int) -> tuple[Latent]:
    shape = (batch_size, channels, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return ({"samples": np.zeros(shape, np.float32)},)


@registry.node(
    "EmptyLatentImage",
    display_name="Empty Latent Image",
    category="latent",
    required={
        "width": integer(512, 16, MOST, 8),
        "height": integer(512, 16, MOST, 8),
        "batch_size": integer(1, 1, 4096),
    },
    outputs=(Output("LATENT"),),
)
def empty_latent_image(
    _context: NodeContext, width: int, height: int, batch_size: int
) -> tuple[Latent]:
    """Make an empty latent of 4 channels."""
    return _empty(4, width, height, batch_size)


@registry.node(
    "EmptySD3LatentImage",
    category="latent/sd3",
    python_module="comfy_extras.nodes_sd3",
    required={
        "width": integer(1024, 16, MOST, 16),
        "height": integer(1024, 16, MOST, 16),
        "batch_size": integer(1, 1, 4096),
    },
    outputs=(Output("LATENT"),),
    style="v3",
)
def empty_sd3_latent_image(
    _context: NodeContext, width: int, height: int, batch_size: int
) -> tuple[Latent]:
    """Make an empty latent of 16 channels."""
    return _empty(16, width, height, batch_size)


SAMPLERS = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2",
    "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm",
    "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2",
    "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip


@registry.node(
    "KSampler",
    category="sampling",
    description=f"{_PRETENDED} Every step waits a little and reports its progress and a preview.",
    required={
        "model": Input("MODEL", {}),
        "seed": integer(0, 0, 2**64 - 1, control_after_generate=True),
        "steps": integer(20, 1, 10000),
        "cfg": real(8.0, 0.0, 100.0, 0.1, round=0.01),
        "sampler_name": Input(SAMPLERS, {}),
        "scheduler": Input(SCHEDULERS, {}),
        "positive": Input("CONDITIONING", {}),
        "negative": Input("CONDITIONING", {}),
        "latent_image": Input("LATENT", {}),
        "denoise": real(1.0, 0.0, 1.0, 0.01),
    },
    outputs=(Output("LATENT"),),
)
def ksampler(
    context: NodeContext,
    *,
    model: PretendedModel,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Conditioning,
    negative: Conditioning,
    latent_image: Latent,
    denoise: float,
) -> tuple[Latent]:
    """Pretend to sample: noise that turns into a pattern, one report a step."""
    given: Pixels = latent_image["samples"]
    batch, _channels, height, width = given.shape
    shape = (batch, CHANNELS, height, width)
    words = (model.name, seed, cfg, sampler_name, scheduler, denoise, positive, negative)
    random = np.random.default_rng(
        int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:16])
    )
    start = random.standard_normal(shape, np.float32)
    if given.shape == shape:
        start = given * np.float32(1 - denoise) + start * np.float32(denoise)
    goal = _pattern(random, shape)
    samples = start
    for step in range(1, steps + 1):
        context.sleep(STEP_SECONDS + STEP_SECONDS_PER_LATENT * height * width)
        done = np.float32(denoise * step / steps)
        samples = start * (1 - done) + goal * done
        context.progress(step, steps, _preview(samples))
    return ({**latent_image, "samples": samples},)


def _pattern(random: np.random.Generator, shape: tuple[int, int, int, int]) -> Pixels:
    """Return smooth waves, different in every image and channel: -1 to 1."""
    batch, channels, height, width = shape
    waves = 5
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)
    out = np.zeros(shape, np.float32)
    for frame in range(batch):
        # One set of directions per image, so that its colours belong together.
        turns = random.uniform(-9, 9, (waves, 2))
        for channel in range(channels):
            phases = random.uniform(0, 2 * np.pi, waves)
            for (across, down), phase in zip(turns, phases, strict=True):
                out[frame, channel] += np.sin(
                    np.float32(across) * x + np.float32(down) * y + np.float32(phase)
                )
    return out / np.float32(waves)


def _colors(samples: Pixels) -> Pixels:
    """Return ``[batch, height, width, 3]`` colours of latents, the fourth channel being brightness."""
    light = samples[:, 3:4] * np.float32(0.15)
    return np.moveaxis(np.float32(0.5) + np.float32(0.35) * samples[:, :3] + light, 1, -1)


def _preview(samples: Pixels) -> Image.Image:
    return picture(_colors(samples[:1])[0])


@registry.node(
    "VAEDecode",
    display_name="VAE Decode",
    category="latent",
    description=f"{_PRETENDED} The latents become colours.",
    required={"samples": Input("LATENT", {}), "vae": Input("VAE", {})},
    outputs=IMAGE_OUT,
)
def vae_decode(_context: NodeContext, samples: Latent, vae: PretendedModel) -> tuple[Pixels]:
    """Pretend to decode latents into pixels.

    Raises RuntimeError, in the words of a real VAE, for latents of another number of channels.
    """
    latents: Pixels = samples["samples"]
    _batch, channels, height, width = latents.shape
    if channels != CHANNELS:
        raise RuntimeError(
            f"Given groups=1, weight of size [64, {CHANNELS}, 3, 3], expected input{list(latents.shape)} "
            f"to have {CHANNELS} channels, but got {channels} channels instead"
        )
    by = PIXELS_PER_LATENT
    image = scale(_colors(latents), width * by, height * by, "bicubic")
    return (np.clip(image, 0, 1),)
