"""SAM-UNet: a frozen SAM image encoder with a ResNet beside it and a U-shaped bridge to the decoder.

The model of the paper (arXiv 2408.09886), from the classes of segment-anything and torchvision,
under the names of its authors' checkpoints. What a ResNet sees in the image is added to the ViT's
tokens before each of its global blocks; what comes out of them is added to the mask features. One
token stands for one mask: there is no choice among masks and no predicted IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from segment_anything.modeling import ImageEncoderViT, PromptEncoder, Sam
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import nn
from torch.nn import functional
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from ultrarefiner.models.sam import SamArchitecture, build_sam, set_pixel_constants
from ultrarefiner.models.scratch import start_weights
from ultrarefiner.registry import Registry


@dataclass(frozen=True)
class Branch:
    """A ResNet as the branch beside the encoder.

    Attributes:
        block: Its building block.
        layers: Blocks in each of its four stages.
    """

    block: type[BasicBlock | Bottleneck]
    layers: tuple[int, int, int, int]

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels that its stages give, at a quarter of the frame's side and so on."""
        return tuple(width * self.block.expansion for width in (64, 128, 256, 512))


BRANCHES: Registry[Branch] = Registry(
    "ResNet of SAM-UNet",
    {
        "10": Branch(BasicBlock, (1, 1, 1, 1)),  # for trials without a GPU
        "34": Branch(BasicBlock, (3, 4, 6, 3)),
        "50": Branch(Bottleneck, (3, 4, 6, 3)),
    },
)
"""The branches by their number of layers."""

VIT_B = SamArchitecture(
    embed_dim=768,
    depth=12,
    num_heads=12,
    global_blocks=(2, 5, 8, 11),
    window_size=14,
    mlp_ratio=4.0,
    patch_size=16,
    image_size=256,
    prompt_dim=256,
    mask_channels=16,
    decoder_depth=2,
    decoder_mlp_dim=2048,
    decoder_downsample=2,
    multimask_outputs=3,
    iou_depth=3,
    iou_hidden=256,
)
"""SAM ViT-B in a frame of 256 pixels, as it was published."""

TINY = replace(
    VIT_B,
    embed_dim=64,
    depth=8,
    num_heads=4,
    global_blocks=(1, 3, 5, 7),
    window_size=4,
    patch_size=16,
    image_size=128,
    prompt_dim=64,
    decoder_mlp_dim=128,
    iou_hidden=64,
)
"""The same with small widths, for trials without a GPU."""

_FRACTION = 4  # side of the mask features over that of the token grid


class SamUNet(nn.Module):
    """SAM-UNet with random weights; ``load_sam_unet`` and ``begin_sam_unet`` give others.

    Args:
        resnet: Layers of the branch, a row of ``BRANCHES``.
        architecture: Sizes of the SAM. Its blocks fall into four groups, each ending with one of
            the four global blocks.

    Attributes:
        image_encoder: The frozen ViT; its parameters never require a gradient.
        prompt_encoder: SAM's.
        mask_decoder: SAM's transformer, with one mask token of its own.

    Raises:
        ConfigError: No such branch.
        ValueError: The encoder has not four global blocks, or does not end with one.
    """

    mask_threshold = 0.0

    def __init__(self, resnet: int | str = 50, architecture: SamArchitecture = VIT_B) -> None:
        super().__init__()
        a, branch = architecture, BRANCHES[str(resnet)]
        if len(a.global_blocks) != 4 or a.global_blocks[-1] != a.depth - 1:
            raise ValueError(
                f"global_blocks {a.global_blocks}: SAM-UNet needs four, the last of {a.depth} "
                "blocks among them"
            )
        self.resnet_layers, self.architecture = str(resnet), a
        sam = build_sam(a)
        if torch.get_default_device().type != "meta":
            start_weights(sam.to_empty(device="cpu"))
        self.image_encoder = _FrozenEncoder(sam.image_encoder)
        self.prompt_encoder = _PromptEncoder(sam.prompt_encoder)
        self.mask_decoder = _MaskDecoder(sam, a.prompt_dim)
        self.resnet = _Stages(branch)
        sides = [a.image_size // stride for stride in (4, 8, 16, 32)]
        grid, wide, half = a.image_size // a.patch_size, a.prompt_dim, a.prompt_dim // 8
        self.adapters_in = nn.ModuleList(
            _AdapterIn(channels, side, a.embed_dim, grid)
            for channels, side in zip(branch.channels, sides, strict=True)
        )
        self.adapters_bridge = nn.ModuleList(
            _enlarging(a.embed_dim, wide, half) for _ in range(len(a.global_blocks) - 1)
        )
        self.embedding_encoder = _enlarging(wide, wide // 4, half)
        for name in ("pixel_mean", "pixel_std"):
            self.register_buffer(name, None, persistent=False)
        set_pixel_constants(self)

    @classmethod
    def tiny(cls, resnet: int | str = 10) -> SamUNet:
        """Return one with small widths and random weights, in a frame of 128 pixels."""
        return cls(resnet, TINY)

    preprocess = Sam.preprocess
    postprocess_masks = Sam.postprocess_masks

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    @property
    def first_adapted_block(self) -> int:
        """Index of the block before which the branch first comes in; what is before is frozen."""
        return self.architecture.global_blocks[0]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            pixels: float32 (B, 3, side, side), normalised and padded, on the model's device.

        Returns:
            The embedding with the mask features, packed: see ``unpack``.
        """
        return self.encode_from(self.encode_until(pixels), pixels)

    def encode_until(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the tokens (B, grid, grid, width) as the frozen blocks give them by themselves."""
        encoder = self.image_encoder.sam_img_encoder
        with torch.no_grad():
            tokens = encoder.patch_embed(pixels) + encoder.pos_embed
            for block in encoder.blocks[: self.first_adapted_block]:
                tokens = block(tokens)
        return tokens

    def encode_from(self, tokens: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Return what ``encode`` does, from what ``encode_until`` gave for the same pixels."""
        encoder, last = self.image_encoder.sam_img_encoder, self.architecture.global_blocks
        bridges, fine = list(reversed(self.adapters_bridge)), 0
        stages = iter(zip(self.adapters_in, self.resnet(pixels), strict=True))
        group = 0
        for index in range(self.first_adapted_block, len(encoder.blocks)):
            if index in last:
                adapter, seen = next(stages)
                tokens = tokens + adapter(seen).permute(0, 2, 3, 1)
            tokens = encoder.blocks[index](tokens)
            if index in last and group < len(bridges):
                fine = fine + bridges[group](tokens.permute(0, 3, 1, 2))
                group += 1
        embedding = encoder.neck(tokens.permute(0, 3, 1, 2))
        return pack(embedding, fine + self.embedding_encoder(embedding))

    def decode(
        self,
        encoded: torch.Tensor,
        sparse: torch.Tensor,
        dense: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode prompts.

        Args:
            encoded: What ``encode`` gave, (1 or N, ...): one image for all prompts or one for each.
            sparse: Tokens of the prompts (N, tokens, channels), from ``prompt_encoder``.
            dense: (N, channels, grid, grid), from ``prompt_encoder``.
            positions: ``prompt_encoder.get_dense_pe()``; made here if it is not given.

        Returns:
            Low-resolution logits (N, 1, 4 grid, 4 grid).
        """
        embedding, fine = unpack(encoded, self.architecture.prompt_dim)
        if positions is None:
            positions = self.prompt_encoder.get_dense_pe()
        return self.mask_decoder(embedding + dense, positions, sparse, fine)

    def forward(
        self,
        pixels: torch.Tensor,
        boxes: torch.Tensor | None = None,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Segment what prompts are about, in the model's frame.

        Args:
            pixels: float32 (B, 3, side, side), normalised and padded.
            boxes: float32 (N, 4) or (N, 1, 4), x0, y0, x1, y1 in pixels of the frame.
            points: Coordinates (N, P, 2) and labels (N, P).
            masks: Logits (N, 1, 4 grid, 4 grid).

        N is B, or any number if B is 1.

        Returns:
            Low-resolution logits (N, 1, 4 grid, 4 grid).
        """
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=masks)
        return self.decode(self.encode(pixels), sparse, dense)


def pack(embedding: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """Join an embedding (B, C, g, g) and mask features (B, F, 4g, 4g) to (B, C + 16 F, g, g).

    So that one array holds all that is kept of an image; no number is changed.
    """
    return torch.cat([embedding, functional.pixel_unshuffle(fine, _FRACTION)], dim=1)


def unpack(encoded: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embedding, of so many channels, and the mask features that ``pack`` joined."""
    return encoded[:, :channels], functional.pixel_shuffle(encoded[:, channels:], _FRACTION)


class _FrozenEncoder(nn.Module):
    """The ViT under the name that it has in checkpoints; in eval mode and without gradients."""

    def __init__(self, encoder: ImageEncoderViT) -> None:
        super().__init__()
        self.sam_img_encoder = encoder.requires_grad_(False)
        self.img_size = encoder.img_size


class _PromptEncoder(nn.Module):
    """SAM's prompt encoder under the name that it has in checkpoints."""

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.sam_prompt_encoder = encoder
        self.mask_input_size = encoder.mask_input_size

    def get_dense_pe(self) -> torch.Tensor:
        """Return the positions of the token grid, (1, channels, grid, grid)."""
        return self.sam_prompt_encoder.get_dense_pe()

    def forward(
        self,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        masks: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sparse and dense embeddings as SAM's does."""
        return self.sam_prompt_encoder(points=points, boxes=boxes, masks=masks)


class _SamDecoder(nn.Module):
    """What is kept of SAM's decoder."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.transformer = sam.mask_decoder.transformer
        self.output_upscaling = sam.mask_decoder.output_upscaling


class _MaskDecoder(nn.Module):
    """SAM's decoder with one mask token, and mask features of more scales."""

    def __init__(self, sam: Sam, channels: int) -> None:
        super().__init__()
        few = channels // 8
        self.sam_mask_decoder = _SamDecoder(sam)
        self.med_token = nn.Embedding(1, channels)
        self.hf_mlp = MLP(channels, channels, few, 3)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(few, 2 * few, 3, padding=1),
            LayerNorm2d(2 * few),
            nn.GELU(),
            nn.Conv2d(2 * few, few, 3, padding=1),
        )

    def forward(
        self,
        image: torch.Tensor,
        positions: torch.Tensor,
        sparse: torch.Tensor,
        fine: torch.Tensor,
    ) -> torch.Tensor:
        """Return logits (N, 1, 4 g, 4 g) of images with dense prompts (N, channels, g, g)."""
        count, channels, height, width = image.shape
        tokens = torch.cat([self.med_token.weight.expand(count, 1, -1), sparse], dim=1)
        tokens, image = self.sam_mask_decoder.transformer(
            image, positions.expand(count, -1, -1, -1), tokens
        )
        image = image.transpose(1, 2).reshape(count, channels, height, width)
        features = self.embedding_maskfeature(self.sam_mask_decoder.output_upscaling(image)) + fine
        weights = self.hf_mlp(tokens[:, 0])
        return torch.einsum("nc,nchw->nhw", weights, features)[:, None]


class _Stages(nn.Module):
    """A torchvision ResNet that gives what each of its stages sees."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        net = ResNet(branch.block, list(branch.layers))
        self.stage0 = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stage1, self.stage2 = net.layer1, net.layer2
        self.stage3, self.stage4 = net.layer3, net.layer4

    def forward(self, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return four maps of (B, 3, side, side), at a quarter of the side and so on."""
        seen, maps = self.stage0(pixels), []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            seen = stage(seen)
            maps.append(seen)
        return maps


class _AdapterIn(nn.Module):
    """Brings a map of the branch to the ViT's width on the token grid."""

    def __init__(self, channels: int, side: int, width: int, grid: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while side != grid:
            shrinks = side > grid
            out = channels * 2 if shrinks else channels // 2
            step = (
                nn.Conv2d(channels, out, 3, stride=2, padding=1)
                if shrinks
                else nn.ConvTranspose2d(channels, out, 2, stride=2)
            )
            layers += [step, LayerNorm2d(out), nn.GELU()]
            channels, side = out, side // 2 if shrinks else side * 2
        self.reshaper = nn.Sequential(*layers, nn.Conv2d(channels, width, 1))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """Return (B, width, grid, grid)."""
        return self.reshaper(seen)


def _enlarging(channels: int, between: int, out: int) -> nn.Sequential:
    """Return layers that double the side twice."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, between, 2, stride=2),
        LayerNorm2d(between),
        nn.GELU(),
        nn.ConvTranspose2d(between, out, 2, stride=2),
    )
