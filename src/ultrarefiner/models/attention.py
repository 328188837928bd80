"""The blocks of segment-anything's image encoder, computed faster and in less memory.

Same weights, same names, same result. The released code holds the scores of all heads of a global
block at once: heads x 4096 x 4096 floats at 1024 pixels, several times over. Here they pass through
in pieces that stay in the processor's cache, or through torch's fused attention on a GPU; the
decomposed relative positions (Li et al., MViTv2, CVPR 2022) are added to each piece. Windows at the
border, which the released code fills with zeros before the projections, are filled after them: the
projection of a zero is the bias.

Where a processor multiplies bfloat16 faster, the MLPs of the later blocks can have such products.
They are taken about the mean token: W x = W (x - m) + W m, the first product rounded, the second
not. Tokens have much in common, so what is rounded is small; the masks then differ about five times
less than with torch's autocast.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Block, get_rel_pos
from torch import nn
from torch.nn import functional

_ROWS = 1024  # queries at a time: their scores stay in the cache
_TOKENS = 1024  # tokens at a time through the MLP, for the same reason
_ROUNDED_TOKENS = 512  # the same with bfloat16 products
_FIRST_ROUNDED = 1 / 3  # of the depth: what an earlier block rounds, all later ones carry on


class FusedBlock(nn.Module):
    """A block of the image encoder; takes over the parts of the released one.

    Where gradients are wanted it runs the released code, which autograd can follow.

    Args:
        block: The released block; its modules and parameters become this one's.

    Attributes:
        rounded: Whether the products of the MLP are bfloat16's, without autocast.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.rounded = False
        self.norm1 = block.norm1
        self.attn = block.attn
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.window_size = block.window_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output for tokens (B, H, W, C), same shape."""
        if torch.is_grad_enabled() and (
            x.requires_grad or any(weight.requires_grad for weight in self.parameters())
        ):
            return Block.forward(self, x)
        x = (x + self._attention(self.norm1(x))).contiguous()
        if self.rounded:
            self._add_rounded_mlp(x)
            return x
        flat = x.view(-1, x.shape[-1])
        for part in flat.split(_TOKENS) if x.device.type == "cpu" else [flat]:
            part += self.mlp(self.norm2(part))
        return x

    def _add_rounded_mlp(self, x: torch.Tensor) -> None:
        """Add the MLP's output to tokens (B, H, W, C), in place, with bfloat16 products."""
        first, second = self.mlp.lin1, self.mlp.lin2
        for image in x.flatten(1, 2):  # so that no image's rounding depends on another image
            for part in image.split(_ROUNDED_TOKENS):
                hidden = self.mlp.act(_rounded_product(first, self.norm2(part)))
                part += _rounded_product(second, hidden)

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        qkv = self.attn.qkv(x)
        size = self.window_size
        if size:
            qkv = self._windows(qkv, size)
        count, rows, columns, _ = qkv.shape
        heads = self.attn.num_heads
        # (3, count, heads, rows, columns, channels of a head)
        q, k, v = qkv.view(count, rows, columns, 3, heads, -1).permute(3, 0, 4, 1, 2, 5).unbind(0)
        if self.attn.use_rel_pos:
            by_row = get_rel_pos(rows, rows, self.attn.rel_pos_h)
            by_column = get_rel_pos(columns, columns, self.attn.rel_pos_w)
            biases = (
                torch.einsum("nhrcd,rkd->nhrck", q, by_row.to(q.dtype)),
                torch.einsum("nhrcd,ckd->nhrck", q, by_column.to(q.dtype)),
            )
        else:
            biases = None
        attend = _attend_in_pieces if x.device.type == "cpu" else _attend_fused
        out = attend(q, k, v, biases, self.attn.scale)
        if size:
            across, down = -(-width // size), -(-height // size)
            out = out.view(batch, down, across, size, size, channels).transpose(2, 3)
            out = out.reshape(batch, down * size, across * size, channels)
            out = out[:, :height, :width]
        return self.attn.proj(out)

    def _windows(self, qkv: torch.Tensor, size: int) -> torch.Tensor:
        """Cut (B, H, W, 3 C) into windows (B * count, size, size, 3 C)."""
        batch, height, width, channels = qkv.shape
        down, across = -(-height // size), -(-width // size)
        if (down * size, across * size) != (height, width):
            padded = qkv.new_empty(batch, down * size, across * size, channels)
            padded[:, :height, :width] = qkv
            nothing = self.attn.qkv(qkv.new_zeros(1, channels // 3)).to(qkv.dtype)
            padded[:, height:] = nothing
            padded[:, :height, width:] = nothing
            qkv = padded
        qkv = qkv.view(batch, down, size, across, size, channels).transpose(2, 3)
        return qkv.reshape(-1, size, size, channels)


def _rounded_product(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return a layer's output for x (N, C), which is overwritten; float32, bfloat16 products.

    The mean of every sixteenth token does for the mean token: the result is right for any. A layer
    with a low-rank addition is more than its weight: it is not rounded.
    """
    if type(layer) is not nn.Linear:
        return layer(x)
    mean = x[::16].mean(0)
    near = functional.linear(x.sub_(mean).bfloat16(), layer.weight.bfloat16())
    return torch.add(near, functional.linear(mean, layer.weight, layer.bias))


Biases = tuple[torch.Tensor, torch.Tensor] | None


def _attend_in_pieces(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, biases: Biases, scale: float
) -> torch.Tensor:
    """Return softmax(scale q k + biases) v, float32 arithmetic, piece by piece.

    Args:
        q: (N, heads, rows, columns, channels of a head); ``k`` and ``v`` likewise.
        k: Keys.
        v: Values.
        biases: For each query the bias of each row and of each column of keys,
            (N, heads, rows, columns, rows) and (N, heads, rows, columns, columns).
        scale: Factor of the products.

    Returns:
        (N, rows, columns, heads * channels of a head) in the type of ``q``.
    """
    count, heads, rows, columns, channels = q.shape
    tokens = rows * columns
    out = q.new_empty(count, tokens, heads, channels, dtype=torch.float32)
    # As many heads at a time as fill a piece; one, and part of its queries, where tokens are many.
    together = max(1, min(heads, _ROWS * _ROWS // (tokens * tokens)))
    step = max(1, _ROWS // columns) if together == 1 else rows
    scores = q.new_empty(together, min(step, rows) * columns, tokens, dtype=torch.float32)
    for n in range(count):
        for first in range(0, heads, together):
            part = slice(first, min(first + together, heads))
            wide = part.stop - part.start
            keys = k[n, part].float().reshape(wide, tokens, channels).transpose(1, 2)
            values = v[n, part].float().reshape(wide, tokens, channels)
            queries = q[n, part].float().reshape(wide, tokens, channels) * scale
            for row in range(0, rows, step):
                end = min(row + step, rows)
                piece = slice(row * columns, end * columns)
                score = scores[:wide, : piece.stop - piece.start]
                torch.bmm(queries[:, piece], keys, out=score)
                if biases is not None:
                    grid = score.view(wide, end - row, columns, rows, columns)
                    grid += biases[0][n, part, row:end].float()[..., None]
                    grid += biases[1][n, part, row:end].float()[..., None, :]
                torch.softmax(score, dim=-1, out=score)
                out[n, piece, part] = torch.bmm(score, values).transpose(0, 1)
    return out.view(count, rows, columns, heads * channels).to(q.dtype)


def _attend_fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, biases: Biases, scale: float
) -> torch.Tensor:
    """Return the same as ``_attend_in_pieces`` by torch's fused attention, in the type of ``q``.

    The sum of both biases is the mask of the fused kernel: one (tokens, tokens) table for each
    head, made for one image at a time.
    """
    count, heads, rows, columns, channels = q.shape
    tokens = rows * columns
    q, k, v = (part.reshape(count, heads, tokens, channels) for part in (q, k, v))
    if biases is None:
        out = functional.scaled_dot_product_attention(q, k, v, scale=scale)
        return out.transpose(1, 2).reshape(count, rows, columns, heads * channels)
    at_once = count if tokens <= _ROWS else 1
    parts = []
    for start in range(0, count, at_once):
        piece = slice(start, start + at_once)
        mask = biases[0][piece, ..., None] + biases[1][piece, ..., None, :]
        mask = mask.reshape(-1, heads, tokens, tokens)
        parts.append(
            functional.scaled_dot_product_attention(
                q[piece], k[piece], v[piece], attn_mask=mask, scale=scale
            )
        )
    out = torch.cat(parts).transpose(1, 2)
    return out.reshape(count, rows, columns, heads * channels)


def is_fused(encoder: nn.Module) -> bool:
    """Return whether an encoder computes its blocks this way."""
    return all(isinstance(block, FusedBlock) for block in getattr(encoder, "blocks", [None]))


def round_products(encoder: ImageEncoderViT, rounded: bool) -> None:
    """Choose whether the later blocks' MLPs have bfloat16 products, in place."""
    for index, block in enumerate(encoder.blocks):
        block.rounded = rounded and index >= _FIRST_ROUNDED * len(encoder.blocks)


def fuse_attention(encoder: ImageEncoderViT) -> None:
    """Let an image encoder compute its blocks this way, in place; parameters and names stay."""
    for index, block in enumerate(encoder.blocks):
        encoder.blocks[index] = FusedBlock(block)
