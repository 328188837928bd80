"""SAM 2.1 as a promptable model of images and of sequences, made of the transformers package.

Sources: Ravi et al., SAM 2: Segment Anything in Images and Videos, arXiv 2408.00714; Ma et al.,
MedSAM2: Segment Anything in 3D Medical Images and Videos, arXiv 2504.03600.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
"""ImageNet's, of values in [0, 1]."""

STRIDE = 16
"""Pixels of the frame along each side of a token."""

_SECOND, _FIRST = 2, 4  # how much finer the two high-resolution maps are than the grid


@dataclass(frozen=True)
class Sam2Architecture:
    """The sizes of a SAM 2.1.

    Attributes:
        stages: Blocks of each stage of the Hiera encoder.
        embed_dim: Channels of its first stage; each further one has twice as many.
        heads: Attention heads of its first stage; each further one has twice as many.
        global_blocks: Blocks whose attention is over the whole image.
        windows: Side of the windows of the other blocks, in tokens, by stage.
        background: (height, width) of the learned grid of positions.
        hidden: Channels of embeddings, prompts and the decoder.
        memory: Channels of a memory.
        memories: Memories that a slice sees.
        feedforward: Hidden channels of the feed-forward layers in decoder and memory attention.
        mask_channels: Hidden channels of the embedding of mask prompts.
        fuser: Hidden channels of the memory's fuser.
        image_size: Side of the square frame in pixels.
    """

    stages: tuple[int, int, int, int] = (1, 2, 7, 2)
    embed_dim: int = 96
    heads: int = 1
    global_blocks: tuple[int, ...] = (5, 7, 9)
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    background: tuple[int, int] = (7, 7)
    hidden: int = 256
    memory: int = 64
    memories: int = 7
    feedforward: int = 2048
    mask_channels: int = 16
    fuser: int = 1024
    image_size: int = 512

    @property
    def grid(self) -> int:
        """Side of an embedding in tokens."""
        return self.image_size // STRIDE

    def config(self) -> Any:
        """Return the configuration that the transformers package builds such a model from."""
        from transformers import Sam2VideoConfig
        from transformers.models.sam2.configuration_sam2 import (
            Sam2HieraDetConfig,
            Sam2VisionConfig,
        )
        from transformers.models.sam2_video.configuration_sam2_video import (
            Sam2VideoMaskDecoderConfig,
            Sam2VideoPromptEncoderConfig,
        )

        widths = [self.embed_dim * 2**stage for stage in range(4)]
        sides = [self.grid * _FIRST, self.grid * _SECOND, self.grid]
        backbone = Sam2HieraDetConfig(
            hidden_size=self.embed_dim,
            num_attention_heads=self.heads,
            image_size=[self.image_size, self.image_size],
            blocks_per_stage=list(self.stages),
            embed_dim_per_stage=widths,
            num_attention_heads_per_stage=[self.heads * 2**stage for stage in range(4)],
            window_size_per_stage=list(self.windows),
            global_attention_blocks=list(self.global_blocks),
            window_positional_embedding_background_size=list(self.background),
        )
        vision = Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=widths[::-1],
            backbone_feature_sizes=[[side, side] for side in sides],
            fpn_hidden_size=self.hidden,
        )
        return Sam2VideoConfig(
            vision_config=vision,
            prompt_encoder_config=Sam2VideoPromptEncoderConfig(
                hidden_size=self.hidden,
                image_size=self.image_size,
                mask_input_channels=self.mask_channels,
            ),
            mask_decoder_config=Sam2VideoMaskDecoderConfig(
                hidden_size=self.hidden, mlp_dim=self.feedforward, iou_head_hidden_dim=self.hidden
            ),
            image_size=self.image_size,
            num_maskmem=self.memories,
            memory_attention_hidden_size=self.hidden,
            memory_attention_feed_forward_hidden_size=self.feedforward,
            memory_attention_rope_feat_sizes=[self.grid, self.grid],
            # Chance that several processes would not share.
            memory_attention_dropout=0.0,
            memory_attention_rope_dropout=0.0,
            memory_encoder_hidden_size=self.hidden,
            memory_encoder_output_channels=self.memory,
            mask_downsampler_embed_dim=self.hidden,
            memory_fuser_embed_dim=self.hidden,
            memory_fuser_intermediate_dim=self.fuser,
        )


TINY = Sam2Architecture(
    stages=(1, 1, 2, 1),
    embed_dim=8,
    global_blocks=(3,),
    windows=(8, 4, 4, 2),
    hidden=64,
    feedforward=64,
    fuser=64,
    image_size=128,
)
"""Small enough for tests."""


class Encoder(nn.Module):
    """The image encoder, with the two layers that fit its finer maps to the decoder.

    Attributes:
        img_size: Side of the frame in pixels.
    """

    def __init__(self, vision: nn.Module, decoder: nn.Module, image_size: int) -> None:
        super().__init__()
        self.vision = vision
        self.conv_s0, self.conv_s1 = decoder.conv_s0, decoder.conv_s1
        # The decoder makes no use of them itself.
        del decoder.conv_s0, decoder.conv_s1
        self.img_size = image_size

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of all stages."""
        return self.vision.backbone.blocks

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode float32 (B, 3, side, side), normalised, to packed maps (B, C, grid, grid)."""
        first, second, embedding = self.vision(pixels).fpn_hidden_states
        return pack(embedding, self.conv_s1(second), self.conv_s0(first))

    def positions(self, device: torch.device, grid: int, hidden: int) -> torch.Tensor:
        """Return the positional encoding of the embedding, (1, C, grid, grid)."""
        shape = torch.Size((1, hidden, grid, grid))
        return self.vision.neck.position_encoding(shape, device, torch.float32)


def pack(embedding: torch.Tensor, second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Put embedding (B, C, g, g) and the maps (B, C / 4, 2g, 2g), (B, C / 8, 4g, 4g) in one.

    Returns:
        (B, 4 C, g, g): blocks of pixels of the finer maps as channels.
    """
    finer = (
        functional.pixel_unshuffle(one, by) for one, by in ((second, _SECOND), (first, _FIRST))
    )
    return torch.cat([embedding, *finer], dim=1)


def unpack(features: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the embedding, and the finer maps as the decoder takes them; see ``pack``."""
    channels = features.shape[1] // 4
    embedding, second, first = features.split([channels, channels, 2 * channels], dim=1)
    finer = [functional.pixel_shuffle(first, _FIRST), functional.pixel_shuffle(second, _SECOND)]
    return embedding, finer


class Memory(nn.Module):
    """What SAM 2 remembers slices with: attention to memories, their encoder, object pointers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.attention = model.memory_attention
        self.encoder = model.memory_encoder
        self.pointer = model.object_pointer_proj
        self.pointer_time = model.temporal_positional_encoding_projection_layer
        self.mask_downsample = model.mask_downsample
        self.no_memory = model.no_memory_embedding
        self.no_memory_position = model.no_memory_positional_encoding
        self.temporal_positions = model.memory_temporal_positional_encoding
        self.no_object_pointer = model.no_object_pointer
        self.no_object_spatial = model.occlusion_spatial_embedding_parameter


@dataclass(frozen=True)
class Decoded:
    """What the decoder gives for N prompts.

    Attributes:
        logits: (N, K, 4 grid, 4 grid) low-resolution logits.
        ious: (N, K) predicted IoU.
        tokens: (N, K, C) the tokens of those masks, or (N, 1, C) of the one-mask output.
        presence: (N, 1) logit of whether there is an object in the image at all.
    """

    logits: torch.Tensor
    ious: torch.Tensor
    tokens: torch.Tensor
    presence: torch.Tensor


class MedSam2(nn.Module):
    """A SAM 2.1 of any size, MedSAM2 among them.

    The parts have the names of segment-anything's, so that what finetunes those finetunes this.

    Args:
        architecture: Its sizes.
    """

    mask_threshold = 0.0

    def __init__(self, architecture: Sam2Architecture = Sam2Architecture()) -> None:
        super().__init__()
        # Imported here: it takes seconds, and most jobs have no such model.
        from transformers import Sam2VideoModel

        self.architecture = architecture
        whole = Sam2VideoModel(architecture.config())
        self.image_encoder = Encoder(
            whole.vision_encoder, whole.mask_decoder, architecture.image_size
        )
        self.prompt_encoder = whole.prompt_encoder
        self.mask_decoder = whole.mask_decoder
        self.memory = Memory(whole)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.memory.no_memory.device

    def input_tensor(self, image: np.ndarray, resize: str = "bilinear") -> torch.Tensor:
        """Return the encoder's input for an image: stretched to the frame, whatever its sides.

        Args:
            image: uint8 (H, W, 3) RGB.
            resize: ``bilinear``, antialiased, of values in [0, 1], as SAM 2 takes images; or
                ``bicubic`` by Pillow, of gray levels, as MedSAM2 takes slices.

        Returns:
            float32 (1, 3, side, side) on the model's device.
        """
        side = self.architecture.image_size
        mean, std = np.array(PIXEL_MEAN), np.array(PIXEL_STD)
        if resize == "bicubic":
            resized = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
            values = ((np.array(resized) / 255.0 - mean) / std).astype(np.float32)
            return torch.from_numpy(values).permute(2, 0, 1)[None].to(self.device)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        resized = functional.interpolate(
            pixels, (side, side), mode="bilinear", align_corners=False, antialias=True
        )
        shift, scale = (torch.tensor(one).float().view(1, 3, 1, 1) for one in (mean, std))
        return ((resized - shift) / scale).to(self.device)

    def prompt_tokens(
        self,
        points: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        box: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed one prompt, in pixels of the frame, before the half pixel is added.

        Args:
            points: float32 (P, 2) x, y.
            labels: (P,) 1 for lesion, 0 for background.
            box: float32 (4,) x0, y0, x1, y1; its corners are two more points.
            mask: float32 (1, 4 grid, 4 grid) low-resolution logits.

        Returns:
            Sparse (1, T, C), of no tokens for a mask alone; and dense (1, C, grid, grid).
        """
        coordinates, kinds = [], []
        if box is not None:
            coordinates.append(box.reshape(2, 2))
            kinds.append(torch.tensor([2, 3], device=self.device))
        if points is not None:
            coordinates.append(points)
            kinds.append(labels.to(self.device, torch.long))
        some = bool(coordinates)
        sparse, dense = self.prompt_encoder(
            input_points=torch.cat(coordinates)[None, None] if some else None,
            input_labels=torch.cat(kinds)[None, None] if some else None,
            input_boxes=None,
            input_masks=None if mask is None else mask[None],
        )
        if sparse is None:
            sparse = dense.new_zeros((1, 1, 0, self.architecture.hidden))
        return sparse[:, 0], dense

    def padding_tokens(self, count: int) -> torch.Tensor:
        """Return tokens (1, count, C) that stand for no point."""
        return self.prompt_encoder.not_a_point_embed.weight[None].expand(1, count, -1)

    def image_positions(self) -> torch.Tensor:
        """Return the positions of the grid as the decoder takes them, (1, C, grid, grid)."""
        grid = self.architecture.grid
        steps = (torch.arange(grid, device=self.device, dtype=torch.float32) + 0.5) / grid
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        # Without an input shape the coordinates are taken as shares.
        encoded = self.prompt_encoder.shared_embedding(torch.stack([x, y], dim=-1))
        return encoded.permute(2, 0, 1)[None]

    def decode(
        self,
        image: torch.Tensor,
        finer: list[torch.Tensor],
        sparse: torch.Tensor,
        dense: torch.Tensor,
        positions: torch.Tensor,
        multimask: bool,
    ) -> Decoded:
        """Decode N prompts of equally many tokens.

        Args:
            image: Embedding (N, C, grid, grid), with what the memory, or its absence, adds to it.
            finer: The finer maps, (N, ...) or (1, ...); see ``unpack``.
            sparse: (N, T, C).
            dense: (N, C, grid, grid).
            positions: ``image_positions``.
            multimask: The three masks for ambiguous prompts instead of the single one.
        """
        count = len(sparse)
        logits, ious, tokens, presence = self.mask_decoder(
            image_embeddings=image.expand(count, -1, -1, -1),
            image_positional_embeddings=positions.expand(count, -1, -1, -1),
            sparse_prompt_embeddings=sparse[:, None],
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=[one.expand(count, -1, -1, -1) for one in finer],
        )
        return Decoded(logits[:, 0], ious[:, 0], tokens[:, 0], presence[:, 0])

    def without_memory(self, embedding: torch.Tensor) -> torch.Tensor:
        """Return an embedding (B, C, grid, grid) as an image by itself is decoded."""
        return embedding + self.memory.no_memory.reshape(1, -1, 1, 1)

    def postprocess_masks(
        self, masks: torch.Tensor, input_size: tuple[int, int], original_size: tuple[int, int]
    ) -> torch.Tensor:
        """Bring low-resolution logits (N, 1, h, w) to the image's (height, width), bilinearly."""
        return functional.interpolate(
            masks.float(), original_size, mode="bilinear", align_corners=False
        )
