"""The hybrid encoder R50+ViT-B/16 (Dosovitskiy et al., 2021, arXiv 2010.11929) of TransUNet and TransCASCADE."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from timm.layers import StdConv2d
from torch import Tensor, nn

from networks.base import pad_to
from networks.layers import Checkpointed, Mlp, named
from networks.options import check_divides, check_multiple, check_stages
from networks.pretrained import ImageNetStart, resize_positions

STRIDE = 16  # pixels a side of one token


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> StdConv2d:
    """A convolution with standardized weights (Qiao et al., 2019), padded to keep the size at stride 1."""
    return StdConv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, eps=1e-5)


class Bottleneck(nn.Module):
    """Residual unit, a quarter of the width within; its last ReLU follows the sum, unlike in the paper of ResNetV2."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, groups: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.gn1 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv1 = _conv(in_channels, width, 1)
        self.gn2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = _conv(width, width, 3, stride)
        self.gn3 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv3 = _conv(width, out_channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.projects = stride != 1 or in_channels != out_channels
        if self.projects:
            self.downsample = _conv(in_channels, out_channels, 1, stride)
            # As published: every channel a group of its own, and another eps than above.
            self.gn_proj = nn.GroupNorm(out_channels, out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.gn_proj(self.downsample(x)) if self.projects else x
        x = self.relu(self.gn1(self.conv1(x)))
        x = self.relu(self.gn2(self.conv2(x)))
        return self.relu(shortcut + self.gn3(self.conv3(x)))


class ResNetV2(Checkpointed):
    """ResNet-50 without its last stage: (B, 3, H, W) to (B, 16w, H/16, W/16) and the skips at /8, /4 and /2."""

    def __init__(self, width: int, units: Sequence[int], *, groups: int) -> None:
        super().__init__()
        conv, norm = _conv(3, width, 7, 2), nn.GroupNorm(groups, width, eps=1e-6)
        self.root = named(conv=conv, gn=norm, relu=nn.ReLU(inplace=True))
        self.body = nn.Sequential()
        in_channels = width
        for i, count in enumerate(units):
            out_channels, stride = 4 * width * 2**i, 1 if i == 0 else 2
            block = nn.Sequential()
            for j in range(count):
                unit = Bottleneck(in_channels, out_channels, stride=stride if j == 0 else 1, groups=groups)
                block.add_module(f"unit{j + 1}", unit)
                in_channels = out_channels
            self.body.add_module(f"block{i + 1}", block)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        height, width = x.shape[2:]
        x = self.run(self.root, x)
        skips = [x]
        x = F.max_pool2d(x, kernel_size=3, stride=2)
        for i, block in enumerate(self.body):
            x = self.run(block, x)
            # The pooling pads nothing and loses a row and a column at /4; only the skip gets them back, as zeros.
            skips.append(pad_to(x, (height // (4 * 2**i), width // (4 * 2**i))))
        return x, skips[-2::-1]


class Embeddings(nn.Module):
    """The convolutional maps, and the coarsest as tokens with position embeddings: (B, h*w, hidden_size)."""

    def __init__(self, hybrid_model: ResNetV2, channels: int, hidden_size: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.hybrid_model = hybrid_model
        self.patch_embeddings = nn.Conv2d(channels, hidden_size, kernel_size=1)
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, hidden_size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, skips = self.hybrid_model(x)
        x = rearrange(self.patch_embeddings(x), "b c h w -> b (h w) c")
        return self.dropout(x + self.position_embeddings), skips


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, C)."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.proj_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            rearrange(part(x), "b n (h d) -> b h n d", h=self.num_heads) for part in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.proj_dropout(self.out(rearrange(x, "b h n d -> b n (h d)")))


class Block(nn.Module):
    """Transformer layer with the norms first."""

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_dim: int, *, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.ffn_norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.ffn = Mlp(hidden_size, mlp_dim, dropout)
        self.attn = Attention(hidden_size, num_heads, attention_dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Encoder(Checkpointed):
    """The transformer's layers and its last norm, on tokens (B, N, C)."""

    def __init__(self, layers: Sequence[nn.Module], hidden_size: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)
        self.encoder_norm = nn.LayerNorm(hidden_size, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = self.run(layer, x)
        return self.encoder_norm(x)


class R50ViT(nn.Module):
    """Hybrid encoder: (B, 3, 16h, 16w) to the map (B, hidden_size, h, w) and the skips at /8, /4 and /2.

    `channels` are those of the map and of the skips.

    Args:
        size: (H, W) of the padded image; tokens have `STRIDE` pixels a side.
        hidden_size, num_heads, num_layers, mlp_dim: of the transformer; ViT-B by default.
        cnn_width: channels of the convolutional root.
        cnn_units: residual units of the stages at /4, /8 and /16.
        norm_groups: groups of the group norms.
        dropout_rate: after the position embeddings and in the MLPs.
        attention_dropout_rate: of the attention weights and of what attention gives.
    """

    # Modules that carry the features of each resolution, fine to coarse.
    taps = (
        "embeddings.hybrid_model.root",
        "embeddings.hybrid_model.body.block1",
        "embeddings.hybrid_model.body.block2",
        "to_map",
    )
    positions = "embeddings.position_embeddings"

    def __init__(
        self,
        *,
        size: tuple[int, int],
        hidden_size: int = 768,
        num_heads: int = 12,
        num_layers: int = 12,
        mlp_dim: int = 3072,
        cnn_width: int = 64,
        cnn_units: Sequence[int] = (3, 4, 9),
        norm_groups: int = 32,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_multiple("r50_vit", 2, hidden_size=hidden_size, cnn_width=cnn_width)
        check_stages("r50_vit", 3, cnn_units=cnn_units)
        check_divides("r50_vit", "num_heads", [num_heads], "hidden_size", [hidden_size])
        check_divides("r50_vit", "norm_groups", [norm_groups], "cnn_width", [cnn_width])
        self.grid = size[0] // STRIDE, size[1] // STRIDE
        self.channels = hidden_size, 8 * cnn_width, 4 * cnn_width, cnn_width
        resnet = ResNetV2(cnn_width, cnn_units, groups=norm_groups)
        self.embeddings = Embeddings(resnet, 16 * cnn_width, hidden_size, math.prod(self.grid), dropout_rate)
        layers = [
            Block(hidden_size, num_heads, mlp_dim, dropout=dropout_rate, attention_dropout=attention_dropout_rate)
            for _ in range(num_layers)
        ]
        self.encoder = Encoder(layers, hidden_size)
        # A module, so that it can be tapped.
        self.to_map = Rearrange("b (h w) c -> b c h w", h=self.grid[0], w=self.grid[1])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens, skips = self.embeddings(x)
        return self.to_map(self.encoder(tokens)), skips

    def from_imagenet(self, state: Mapping[str, Tensor], prefix: str) -> ImageNetStart | None:
        """Google's R50+ViT-B_16.npz (ImageNet-21k) for a network in which this encoder is `prefix`; None where `state`,
        the arrays by their names, is no such file.

        Convolutions turn from (H, W, in, out), dense layers from (in, out); the class token's position is dropped, and
        the position embeddings, a square's in the file, are resized to our grid. The classifier is left out.
        """
        if any(mark not in state for mark in _JAX_MARKS):
            return None
        sources = {}
        for key in state:
            name = key
            for pattern, replacement in _JAX_NAMES:
                name = re.sub(pattern, replacement, name)
            if name.startswith(("embeddings/", "encoder/")):
                sources[prefix + name.replace("/", ".")] = key
        tensors = {name: _our_layout(key, state[key]) for name, key in sources.items()}
        positions = tensors[prefix + self.positions]
        resized = resize_positions(positions, self.grid)
        tensors[prefix + self.positions] = resized
        return ImageNetStart(sources, (prefix,), tensors, resized=int(resized is not positions))


# Names in Google's R50+ViT-B_16.npz, and ours.
_JAX_NAMES = (
    (r"^(conv|gn)_root/", r"embeddings/hybrid_model/root/\1/"),
    (r"^(block\d+/unit\d+)/conv_proj/", r"embeddings/hybrid_model/body/\1/downsample/"),
    (r"^(block\d+/unit\d+)/", r"embeddings/hybrid_model/body/\1/"),
    (r"^embedding/", "embeddings/patch_embeddings/"),
    (r"^Transformer/posembed_input/pos_embedding$", "embeddings/position_embeddings"),
    (r"^Transformer/encoder_norm/", "encoder/encoder_norm/"),
    (r"^Transformer/encoderblock_(\d+)/", r"encoder/layer/\1/"),
    (r"/LayerNorm_0/", "/attention_norm/"),
    (r"/LayerNorm_2/", "/ffn_norm/"),
    (r"/MultiHeadDotProductAttention_1/", "/attn/"),
    (r"/MlpBlock_3/Dense_0/", "/ffn/fc1/"),
    (r"/MlpBlock_3/Dense_1/", "/ffn/fc2/"),
    (r"/(kernel|scale)$", "/weight"),
)
_JAX_MARKS = ("conv_root/kernel", "embedding/kernel", "Transformer/posembed_input/pos_embedding")


def _our_layout(name: str, value: Tensor) -> Tensor:
    """The value of a JAX name in the layout of torch's layers."""
    if name.endswith("/pos_embedding"):
        return value[:, 1:]
    if not name.endswith("/kernel"):
        return value.flatten()  # a norm's scale is (1, 1, 1, C), a query's bias (heads, head)
    if value.ndim == 4:
        return value.permute(3, 2, 0, 1)
    # A query's kernel is (in, heads, head), that of the output (heads, head, out).
    return (value.flatten(0, -2) if name.endswith("/out/kernel") else value.flatten(1)).T
