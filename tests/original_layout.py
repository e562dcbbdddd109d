"""Toy models in the original layout of one file, made from diffusers' own by undoing its renaming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def weights_of(folder: Path) -> Tensors:
    return load_file(next(folder.glob("*.safetensors")))


def unet_tensors(unet: Tensors, layers: int) -> Tensors:
    """The UNet's: blocks are numbered through, one for each layer and one for each change of size."""
    plain = {**DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"], **DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"]}
    made = {}
    for name, value in unet.items():
        words = name.split(".")
        if name in plain:
            new = plain[name]
        elif words[0] == "mid_block":
            place = 2 * int(words[2]) if words[1] == "resnets" else 1
            new = f"middle_block.{place}.{_inner(words[1], words[3:])}"
        else:
            down, block = words[0] == "down_blocks", int(words[1])
            first = block * (layers + 1) + (1 if down else 0)
            side = "input_blocks" if down else "output_blocks"
            if words[2] == "downsamplers":
                new = f"{side}.{first + layers}.0.op.{words[-1]}"
            elif words[2] == "upsamplers":
                # Behind the attention of the block's last layer, where there is one.
                attended = any(key.startswith(f"up_blocks.{block}.attentions.{layers}.") for key in unet)
                new = f"{side}.{first + layers}.{2 if attended else 1}.conv.{words[-1]}"
            else:
                kind = 0 if words[2] == "resnets" else 1
                new = f"{side}.{first + int(words[3])}.{kind}.{_inner(words[2], words[4:])}"
        made[f"model.diffusion_model.{new}"] = value
    return made


def _inner(kind: str, words: list[str]) -> str:
    return ".".join([_RESNET[words[0]], *words[1:]] if kind == "resnets" else words)


def vae_tensors(vae: Tensors, levels: int) -> Tensors:
    """The VAE's: its decoder's levels are numbered backwards, and its attention is made of 1 x 1 convolutions."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    plain = DIFFUSERS_TO_LDM_MAPPING["vae"]
    made = {}
    for name, value in vae.items():
        new = plain.get(name, name).replace("conv_shortcut", "nin_shortcut")
        new = new.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        if "mid_block.attentions.0." in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1")
            for ours, theirs in attention.items():
                new = new.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
            value = value[:, :, None, None] if value.dim() == 2 else value
        words = new.split(".")
        if len(words) > 2 and words[1] in ("down_blocks", "up_blocks"):
            level = int(words[2]) if words[1] == "down_blocks" else levels - 1 - int(words[2])
            inner = ["block", *words[4:]] if words[3] == "resnets" else [words[3][: -len("rs")], *words[5:]]
            new = ".".join([words[0], words[1].removesuffix("_blocks"), str(level), *inner])
        made[f"first_stage_model.{new}"] = value
    return made


def clip_tensors(encoder: Tensors, prefix: str) -> Tensors:
    """A text encoder's that is kept as transformers has it."""
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in encoder.items()}


def open_clip_tensors(encoder: Tensors, prefix: str) -> Tensors:
    """A text encoder's as OpenCLIP has it: the three projections of attention in one, the last one transposed."""
    mapping = DIFFUSERS_TO_LDM_MAPPING["openclip"]
    made: Tensors = {f"{prefix}logit_scale": torch.ones(())}
    for given, value in encoder.items():
        name = given if given == "text_projection.weight" else f"text_model.{given.removeprefix('text_model.')}"
        if name in mapping["layers"]:
            made[prefix + mapping["layers"][name]] = value.T.contiguous() if "projection" in name else value
            continue
        new = name
        for ours, theirs in list(mapping["transformer"].items())[:6]:
            new = new.replace(ours, theirs)
        if ".q_proj." in name:
            three = [encoder[given.replace(".q_proj.", f".{one}_proj.")] for one in "qkv"]
            made[f"{prefix}transformer.{new.replace('.q_proj.', '.in_proj_')}"] = torch.cat(three)
        elif ".k_proj." not in name and ".v_proj." not in name:
            made[f"{prefix}transformer.{new}"] = value
    return made


def original_tensors(base: Path, kind: str) -> Tensors:
    """All tensors of a toy pipeline (one layer a block in the UNet, three levels in the VAE), as sd1, sd2 or xl."""
    made = {**unet_tensors(weights_of(base / "unet"), 1), **vae_tensors(weights_of(base / "vae"), 3)}
    first = weights_of(base / "text_encoder")
    if kind == "xl":
        second = weights_of(base / "text_encoder_2")
        made |= clip_tensors(first, "conditioner.embedders.0.transformer.")
        return made | open_clip_tensors(second, "conditioner.embedders.1.model.")
    if kind == "sd2":
        return made | open_clip_tensors(first, "cond_stage_model.model.")
    return made | clip_tensors(first, "cond_stage_model.transformer.")


def write_original(path: Path, base: Path, kind: str, edit: Callable[[Tensors], object] = lambda tensors: None) -> Path:
    """Write a toy pipeline as one file, with the counters that such files have besides.

    Args:
        path: the file.
        base: folder of the pipeline.
        kind: sd1, sd2 or xl.
        edit: changes the tensors before they are written.
    """
    tensors = {**original_tensors(base, kind), "betas": torch.zeros(3), "model_ema.decay": torch.zeros(())}
    edit(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path
