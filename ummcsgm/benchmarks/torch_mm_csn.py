"""The mm-CSN in PyTorch, which `train_step` runs beside the Flax network.

It has the parameters of the Flax network, so that both give the same output; a test says
how closely.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ummcsgm.models.mm_csn import LOG_VARIANCE, MMCSN, VARIANCE
from ummcsgm.types import Params

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchMMCSN(nn.Module):
    """A network and its parameters in PyTorch, channels last on CPU and GPU.

    Called as the Flax network is: images [B, H, W, C], missing [B, M], level [B] ->
    [B, H, W, M or 2 M] float32.
    """

    def __init__(self, network: MMCSN, params: Params):
        super().__init__()
        self.network = network
        self.dtype = DTYPES[np.dtype(network.dtype).name]
        self.weights = nn.ParameterDict(_flatten(_join_kernels(network, params["params"])))

    def forward(self, images: Tensor, missing: Tensor, level: Tensor) -> Tensor:
        net, m = self.network, self.network.modalities
        images, neighbours = images[..., :m], images[..., m:]
        mask = missing[:, None, None, :]
        condition = self.condition(level, missing)
        encoder_condition = condition if net.conditioning == "both" else None
        noisy, seen = images.where(mask, 0.0), images.where(~mask, 0.0)
        separate = torch.cat([noisy, seen], -1)
        inputs = torch.cat([images if encoder_condition is None else separate, neighbours], -1)
        features, skips = self.encode(inputs, missing, encoder_condition)
        features = self.decode(features, skips, condition)
        features = self.activate("norm", features, None)
        context = self.pixels_of(self.dense("context_out", features))
        first, second = np.triu_indices(m)
        products = seen[..., first] * seen[..., second] / 4
        given = torch.cat([separate, products], -1)
        image, hidden = self.pixels(given, context, features)
        if not net.predict_variance:
            return image
        logs = self.variance(given, hidden.detach(), features.detach())
        return torch.cat([image, logs], -1)

    def condition(self, level: Tensor, missing: Tensor) -> Tensor:
        octaves = 2.0 ** torch.arange(-1, 7, device=level.device)
        angles = level[:, None] * octaves
        code = 2.0 * missing.float() - 1.0
        facts = [level[:, None], angles.sin(), angles.cos(), code]
        hidden = functional.silu(self.full("condition.first", torch.cat(facts, 1)))
        return functional.silu(self.full("condition.second", hidden))

    def encode(self, inputs, missing, condition):
        net = self.network
        features = self.patches_of(inputs.to(self.dtype))
        if condition is not None:
            flags = missing[:, None, None, :].to(self.dtype)
            flags = flags.expand(*features.shape[:3], -1)
            features = torch.cat([features, flags], -1)
        features, skips = self.conv("stem", features), []
        for depth in range(len(net.widths)):
            if depth:
                features = _channels_last(functional.avg_pool2d(_channels_first(features), 2))
            features = self.level("down", depth, features, condition)
            skips.append(features)
        return features, skips[:-1]

    def decode(self, features, skips, condition):
        features = self.level("up", len(self.network.widths) - 1, features, condition)
        for depth in reversed(range(len(self.network.widths) - 1)):
            larger = functional.interpolate(_channels_first(features), scale_factor=2)
            features = torch.cat([_channels_last(larger), skips[depth]], -1)
            features = self.level("up", depth, features, condition)
        return features

    def level(self, side, depth, features, condition):
        net = self.network
        if features.shape[-1] != net.widths[depth]:
            features = self.dense(f"{side}{depth}_enter", features)
        for index in range(net.blocks[depth]):
            features = self.block(f"{side}{depth}_{index}", features, condition)
        if max(features.shape[1:3]) <= net.attention_max_grid:
            features = self.attention(f"{side}{depth}_attention", features)
        return features

    def block(self, name, features, condition):
        hidden = self.activate(f"{name}.enter", features, condition)
        hidden = self.conv(f"{name}.first", hidden)
        hidden = self.activate(f"{name}.norm", hidden, None)
        return features + self.conv(f"{name}.second", hidden)

    def activate(self, name, features, condition):
        hidden = self.norm(name, features)
        if condition is not None:
            film = self.full(f"{name}.film", condition).to(self.dtype)
            scale, shift = film[:, None, None].chunk(2, -1)
            hidden = hidden * (1 + scale) + shift
        return functional.silu(hidden)

    def attention(self, name, features):
        b, h, w, c = features.shape
        tokens = self.norm(f"{name}.norm", features).reshape(b, h * w, c)
        projections = (
            torch.einsum("bnc,chd->bhnd", tokens, self.weight(f"{part}.kernel"))
            + self.weight(f"{part}.bias")[:, None]
            for part in (f"{name}.attend.{word}" for word in ("query", "key", "value"))
        )
        heads = functional.scaled_dot_product_attention(*projections)
        out = torch.einsum("bhnd,hdc->bnc", heads, self.weight(f"{name}.attend.out.kernel"))
        out = out + self.weight(f"{name}.attend.out.bias")
        return features + out.reshape(b, h, w, c)

    def pixels(self, given, context, patches):
        net, name = self.network, "pixels"
        inputs = torch.cat([given.to(self.dtype), context], -1)
        hidden = self.in_patches(self.conv(f"{name}.enter", inputs))
        for layer in range(net.pixel_layers):
            film = self.dense(f"{name}.film{layer}", patches)
            scale, shift = film[:, :, None, :, None].chunk(2, -1)
            hidden = functional.silu(hidden * (1 + scale) + shift)
            hidden = self.dense(f"{name}.{layer}", hidden)
        hidden = functional.silu(hidden).float()
        image = self.full(f"{name}.image", hidden)
        maps = self.full(f"{name}.map", patches.float())
        maps = maps.reshape(*patches.shape[:3], net.modalities, given.shape[-1])
        local = self.in_patches(given)
        image = image + torch.einsum("bhpwqi,bhwoi->bhpwqo", local, maps)
        return image.reshape(*given.shape[:3], net.modalities), hidden

    def variance(self, given, hidden, patches):
        film = self.dense(f"{VARIANCE}.film", patches)
        scale, shift = film[:, :, None, :, None].chunk(2, -1)
        hidden = self.dense(f"{VARIANCE}.hidden", hidden)
        hidden = hidden + self.in_patches(self.dense(f"{VARIANCE}.given", given))
        hidden = functional.silu(hidden * (1 + scale) + shift).float()
        raw = self.full(f"{VARIANCE}.log", hidden)
        least, most = LOG_VARIANCE
        soft = functional.softplus
        logs = least + soft(most - soft(most - raw) - least)
        return logs.reshape(*given.shape[:3], self.network.modalities)

    def patches_of(self, images):
        b, h, w, c = images.shape
        p = self.network.patch
        grid = images.reshape(b, h // p, p, w // p, p, c).permute(0, 1, 3, 5, 2, 4)
        grid = grid.reshape(b, h // p, w // p, c, p * p)
        return grid.reshape(b, h // p, w // p, -1)

    def pixels_of(self, features):
        b, h, w, _ = features.shape
        p = self.network.patch
        grid = features.reshape(b, h, w, -1, p * p)
        grid = grid.reshape(b, h, w, -1, p, p).permute(0, 1, 4, 2, 5, 3)
        return grid.reshape(b, h * p, w * p, -1)

    def in_patches(self, images):
        (b, h, w, c), p = images.shape, self.network.patch
        return images.reshape(b, h // p, p, w // p, p, c)

    def weight(self, name: str) -> Tensor:
        return self.weights[name.replace(".", "/")].to(self.dtype)

    def dense(self, name, features):
        has_bias = f"{name}.bias".replace(".", "/") in self.weights
        bias = self.weight(f"{name}.bias") if has_bias else None
        kernel = self.weight(f"{name}.kernel")
        return functional.linear(features.to(self.dtype), kernel, bias)

    def full(self, name, features):
        """A dense layer in float32, whatever the network's type."""
        name = name.replace(".", "/")
        kernel, bias = self.weights[f"{name}/kernel"], self.weights[f"{name}/bias"]
        return functional.linear(features.float(), kernel, bias)

    def norm(self, name, features):
        scale = self.weights[f"{name}.scale".replace(".", "/")]
        width = features.shape[-1:]
        normed = functional.rms_norm(features.float(), width, scale, 1e-6)
        return normed.to(self.dtype)

    def conv(self, name, features):
        kernel, bias = self.weight(f"{name}.kernel"), self.weight(f"{name}.bias")
        features = features.to(self.dtype)
        return _channels_last(
            functional.conv2d(_channels_first(features), kernel, bias, padding="same")
        )


def _channels_first(features: Tensor) -> Tensor:
    """[B, H, W, C] as a view [B, C, H, W], channels last in memory."""
    return features.permute(0, 3, 1, 2)


def _channels_last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1)


def _join_kernels(network: MMCSN, params: dict) -> dict:
    """The parameters with each first convolution in one kernel, channels in the order of
    `forward`'s inputs."""
    m, params = network.modalities, dict(params)
    still = params.pop("still")
    pixels, enter = dict(params["pixels"]), params["pixels"]["enter"]
    noisy, context = np.split(np.asarray(enter["kernel"]), [m], axis=2)
    kernel = np.concatenate([noisy, still["enter"]["kernel"], context], axis=2)
    pixels["enter"] = {**enter, "kernel": kernel}
    params["pixels"] = pixels
    if "stem" in still:
        parts = params["stem"]["kernel"], still["stem"]["kernel"]
        params["stem"] = {**params["stem"], "kernel": np.concatenate(parts, axis=2)}
    return params


def _flatten(tree: Any, path: tuple[str, ...] = ()) -> dict[str, nn.Parameter]:
    """Flax's parameters by their path, each in PyTorch's layout."""
    if isinstance(tree, dict):
        return {
            name: value
            for key, inner in tree.items()
            for name, value in _flatten(inner, (*path, key)).items()
        }
    value = torch.tensor(np.asarray(tree))
    if path[-1] == "kernel" and "attend" not in path:
        order = {2: (1, 0), 4: (3, 2, 0, 1)}[value.ndim]
        value = value.permute(order).contiguous()
    if value.ndim == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    return {"/".join(path): nn.Parameter(value)}
