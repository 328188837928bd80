"""TransUNet, R50-ViT-B/16: a ResNet stem, a vision transformer on its output, a U-shaped decoder.

Source: J. Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image
Segmentation", 2021, arXiv 2102.04306. Layer widths, normalisation constants and parameter names
are those of the published checkpoints, so that they load unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ultrarefiner.models.transunet_weights import load_imagenet21k

__all__ = [
    "TransUNet",
    "TransUNetConfig",
    "build_transunet",
    "build_transunet_tiny",
    "load_imagenet21k",
]

PATCH = 16
SMALLEST = 32


@dataclass(frozen=True)
class TransUNetConfig:
    """Widths of the network; the defaults are R50-ViT-B/16.

    Attributes:
        root_width: Channels of the ResNet stem; stage i is ``root_width * 2**i`` wide inside and
            four times that at its output.
        units: Bottleneck units in the three ResNet stages.
        groups: Groups of the ResNet's group norms; divides every width of the ResNet.
        hidden_size: Width of a token.
        layers: Transformer layers.
        heads: Attention heads; divides ``hidden_size``.
        mlp_size: Hidden width of a layer's MLP.
        bridge_width: Channels that the tokens become before the decoder.
        decoder_widths: Channels of the four decoder blocks, coarse to fine.
        dropout: Dropout after the position embedding and inside the MLPs.
    """

    root_width: int = 64
    units: tuple[int, int, int] = (3, 4, 9)
    groups: int = 32
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    mlp_size: int = 3072
    bridge_width: int = 512
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 16)
    dropout: float = 0.1

    @property
    def skip_widths(self) -> tuple[int, int, int, int]:
        """Channels that join each decoder block: two ResNet stages, the stem, nothing."""
        return 8 * self.root_width, 4 * self.root_width, self.root_width, 0


TINY = TransUNetConfig(
    root_width=16,
    units=(1, 1, 1),
    groups=8,
    hidden_size=96,
    layers=2,
    heads=4,
    mlp_size=192,
    bridge_width=48,
    decoder_widths=(32, 24, 16, 8),
)


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose kernels are shifted and scaled to mean 0 and variance 1 per output.

    Source: S. Qiao et al., "Weight Standardization", 2019; biased variance, 1e-5 under the root.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, H, W) with the standardised kernels."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        kernel = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(x, kernel, None, self.stride, self.padding)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> StandardizedConv2d:
    return StandardizedConv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Bottleneck(nn.Module):
    """Residual unit 1x1, 3x3 (carries the stride), 1x1, each followed by a group norm."""

    def __init__(self, inputs: int, inner: int, stride: int, groups: int) -> None:
        super().__init__()
        outputs = 4 * inner
        self.gn1 = nn.GroupNorm(groups, inner, eps=1e-6)
        self.conv1 = _conv(inputs, inner, 1)
        self.gn2 = nn.GroupNorm(groups, inner, eps=1e-6)
        self.conv2 = _conv(inner, inner, 3, stride)
        self.gn3 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.conv3 = _conv(inner, outputs, 1)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.downsample = _conv(inputs, outputs, 1, stride)
            # The published shortcut norm has one group per channel and torch's own epsilon.
            self.gn_proj = nn.GroupNorm(outputs, outputs, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, inputs, H, W) to (B, 4 * inner, H / stride, W / stride)."""
        shortcut = self.gn_proj(self.downsample(x)) if self.projects else x
        x = F.relu(self.gn1(self.conv1(x)))
        x = F.relu(self.gn2(self.conv2(x)))
        return F.relu(shortcut + self.gn3(self.conv3(x)))


class ResNet(nn.Module):
    """Stem and three stages of bottleneck units, down to 1/16 of the image."""

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__()
        width = config.root_width
        self.root = nn.Sequential()
        self.root.add_module("conv", _conv(3, width, 7, stride=2))
        self.root.add_module("gn", nn.GroupNorm(config.groups, width, eps=1e-6))
        self.root.add_module("relu", nn.ReLU())
        self.body = nn.Sequential()
        inputs = width
        for stage, count in enumerate(config.units):
            inner = width * 2**stage
            units = nn.Sequential()
            for unit in range(count):
                stride = 2 if stage > 0 and unit == 0 else 1
                units.add_module(
                    f"unit{unit + 1}", Bottleneck(inputs, inner, stride, config.groups)
                )
                inputs = 4 * inner
            self.body.add_module(f"block{stage + 1}", units)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the features at 1/16 and the skips at 1/8, 1/4 and 1/2 of (B, 3, H, W)."""
        half = self.root(x)
        # The pool has no padding: 112 -> 55. Only the skip is brought back to 56; the next stage
        # takes the 55, and its stride makes 28 of it.
        quarter = self.body.block1(F.max_pool2d(half, kernel_size=3, stride=2))
        skip = F.pad(
            quarter,
            (0, x.shape[-1] // 4 - quarter.shape[-1], 0, x.shape[-2] // 4 - quarter.shape[-2]),
        )
        eighth = self.body.block2(quarter)
        return self.body.block3(eighth), [eighth, skip, half]


class Embeddings(nn.Module):
    """ResNet features as tokens with a learned position each."""

    def __init__(self, config: TransUNetConfig, grid: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Parameter(torch.zeros(1, grid * grid, config.hidden_size))
        self.hybrid_model = ResNet(config)
        self.patch_embeddings = nn.Conv2d(16 * config.root_width, config.hidden_size, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return tokens (B, grid * grid, hidden), rows first, and the skips of (B, 3, H, W)."""
        features, skips = self.hybrid_model(x)
        tokens = self.patch_embeddings(features).flatten(2).transpose(1, 2)
        return self.dropout(tokens + self.position_embeddings), skips


class MLP(nn.Module):
    """Two dense layers with an exact GELU between them."""

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_size)
        self.fc2 = nn.Linear(config.mlp_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (B, N, hidden) to the same shape."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class Attention(nn.Module):
    """Multi-head self-attention.

    Written out: the fused memory-efficient kernel's gradient differs from run to run on a GPU,
    and 196 tokens leave it little to gain.
    """

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (B, N, hidden) to the same shape."""
        query, key, value = (
            dense(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for dense in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        mixed = scores.softmax(dim=-1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.ffn = MLP(config)
        self.attn = Attention(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (B, N, hidden) to the same shape."""
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Encoder(nn.Module):
    """Transformer layers and a last layer norm."""

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.encoder_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (B, N, hidden) to the same shape."""
        for layer in self.layer:
            x = layer(x)
        return self.encoder_norm(x)


class Transformer(nn.Module):
    """Image to encoded tokens and convolutional skips."""

    def __init__(self, config: TransUNetConfig, grid: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, grid)
        self.encoder = Encoder(config)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return encoded tokens and skips of (B, 3, H, W)."""
        tokens, skips = self.embeddings(x)
        return self.encoder(tokens), skips


def _conv_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class DecoderBlock(nn.Module):
    """Double the size, join the skip after the enlarged tensor, convolve twice."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(inputs + skip, outputs)
        self.conv2 = _conv_norm_relu(outputs, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """Map (B, inputs, H, W) to (B, outputs, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.conv2(self.conv1(x))


class Decoder(nn.Module):
    """Cascaded upsampling from the token grid to the image size."""

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__()
        self.conv_more = _conv_norm_relu(config.hidden_size, config.bridge_width)
        inputs = (config.bridge_width, *config.decoder_widths)
        self.blocks = nn.ModuleList(
            DecoderBlock(i, s, o)
            for i, s, o in zip(inputs, config.skip_widths, config.decoder_widths, strict=False)
        )

    def forward(self, tokens: torch.Tensor, skips: list[torch.Tensor], grid: int) -> torch.Tensor:
        """Map tokens (B, grid * grid, hidden) to features at the image size."""
        x = self.conv_more(tokens.transpose(1, 2).unflatten(2, (grid, grid)))
        for block, skip in zip(self.blocks, [*skips, None], strict=True):
            x = block(x, skip)
        return x


class TransUNet(nn.Module):
    """TransUNet for square images of one size.

    Args:
        image_size: Height and width in pixels: a multiple of 16, at least 32.
        num_classes: Channels of the logits.
        config: Widths; R50-ViT-B/16 when absent.

    Raises:
        ValueError: Impossible size or number of classes.
    """

    def __init__(
        self, image_size: int = 224, num_classes: int = 2, config: TransUNetConfig | None = None
    ) -> None:
        super().__init__()
        if image_size < SMALLEST or image_size % PATCH:
            near = max(SMALLEST, round(image_size / PATCH) * PATCH)
            raise ValueError(
                f"image_size: {image_size} is not a multiple of {PATCH} from {SMALLEST} on; "
                f"the nearest is {near}"
            )
        if num_classes < 1:
            raise ValueError(
                f"num_classes: {num_classes}; at least 1 is needed (2: with background)"
            )
        self.config = config or TransUNetConfig()
        self.image_size = image_size
        self.num_classes = num_classes
        self.grid = image_size // PATCH
        self.transformer = Transformer(self.config, self.grid)
        self.decoder = Decoder(self.config)
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(self.config.decoder_widths[-1], num_classes, 3, padding=1)
        )

    @classmethod
    def tiny(cls, image_size: int = 64, num_classes: int = 2) -> TransUNet:
        """Return the same network with small widths (0.4 M parameters), for CPUs and tests."""
        return cls(image_size, num_classes, TINY)

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return what the decoder receives.

        Args:
            image: (B, 1 or 3, image_size, image_size), floating, in [0, 1]; one channel is
                repeated to three.

        Returns:
            Encoded tokens (B, (image_size / 16)**2, hidden), rows first, and the skips at 1/8,
            1/4 and 1/2 of the image size.

        Raises:
            ValueError: Another shape or an integer image.
        """
        self._check(image)
        return self.transformer(image.expand(-1, 3, -1, -1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (B, num_classes, image_size, image_size) of ``image``; see ``encode``."""
        tokens, skips = self.encode(image)
        return self.segmentation_head(self.decoder(tokens, skips, self.grid))

    def _check(self, image: torch.Tensor) -> None:
        wanted = f"(B, 1 or 3, {self.image_size}, {self.image_size})"
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise ValueError(f"image of shape {shape}; TransUNet takes {wanted}, channels second")
        if shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"image of shape {shape}; this TransUNet takes {wanted}: resize the image, or "
                "build the model with another image_size"
            )
        if not image.is_floating_point():
            raise ValueError(
                f"image of dtype {image.dtype}; TransUNet takes floating values in [0, 1]: "
                "divide 8-bit pixels by 255"
            )


def build_transunet(image_size: int, num_classes: int) -> TransUNet:
    """Return ``TransUNet(image_size, num_classes)`` with random weights."""
    return TransUNet(image_size, num_classes)


def build_transunet_tiny(image_size: int, num_classes: int) -> TransUNet:
    """Return ``TransUNet.tiny(image_size, num_classes)`` with random weights."""
    return TransUNet.tiny(image_size, num_classes)
