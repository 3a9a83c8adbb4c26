"""Write a small, randomly initialised Stable-Diffusion-1.5-shaped checkpoint that the real ComfyUI loads.

Run by ComfyUI's own interpreter: ``python make_checkpoint.py COMFYUI_FOLDER OUTPUT_FILE``. Two-level UNet of 32 M
parameters, TAESD-shaped VAE, full CLIP-L text encoder (its shape is fixed); seeded, so the file is always the same.
"""

# mypy: ignore-errors
from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
target = Path(sys.argv[2])
sys.argv = sys.argv[:1]

import comfy.options  # noqa: E402  (its import keeps ComfyUI from parsing our arguments)
from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.ops  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

generator = torch.Generator().manual_seed(1234)


def draw(key: str, shape: tuple[int, ...], gain: float) -> torch.Tensor:
    """Draw a weight so that activations keep their size; biases are 0, norms 1."""
    if key.endswith(("bias", "vae_shift")):
        return torch.zeros(shape)
    if len(shape) <= 1:
        return torch.ones(shape)
    deviation = 0.02 if "embedding" in key else gain / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * deviation


def part(prefix: str, module: torch.nn.Module, gain: float = 1.0) -> dict[str, torch.Tensor]:
    """Return random weights of a module under a prefix."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    return {
        prefix + key: draw(key, shapes[key], gain).to(torch.float16).contiguous()
        for key in sorted(shapes)
    }


unet = UNetModel(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    num_res_blocks=[1, 1],
    channel_mult=[1, 1],
    transformer_depth=[0, 1],
    transformer_depth_output=[0, 0, 1, 1],
    transformer_depth_middle=-1,
    use_spatial_transformer=True,
    context_dim=768,
    use_linear_in_transformer=False,
    legacy=False,
    num_heads=8,
    num_head_channels=-1,
    use_temporal_attention=False,
    use_temporal_resblock=False,
    adm_in_channels=None,
    dtype=torch.float32,
    device="meta",
    operations=comfy.ops.disable_weight_init,
)
with torch.device("meta"):
    clip = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            vocab_size=49408,
        )
    )
weights = part("model.diffusion_model.", unet)
weights |= part("first_stage_model.", TAESD(), gain=0.7)
encoder = part("cond_stage_model.transformer.", clip)
weights |= {
    key
    if ".text_model." in key
    else key.replace(".transformer.", ".transformer.text_model."): value
    for key, value in encoder.items()
    if not key.endswith("position_ids")
}
save_file(weights, str(target))
target.chmod(0o644)
