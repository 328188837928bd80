"""Windows around soft masks that gradients flow through: found, cut out of an image, pasted back.

Windows are half-open boxes x0, y0, x1, y1 in pixels, fractions and all: pixel i reaches from i to
i + 1. Cutting and pasting interpolate linearly along rows and columns, each a product with a matrix
of weights; unlike the gradient of ``grid_sample`` this is the same in every run on a GPU.
"""

from __future__ import annotations

import torch

from ultrarefiner.prompts.soft_geometry import full_precision, soft_box

OUTSIDE_LOGIT = -20.0
"""Sure background; a logit of 0 would be a probability of one half."""

_LEAST_SIDE = 1e-3


def roi_around(
    box: torch.Tensor, height: int, width: int, expand: float = 0.2, min_size: float = 64.0
) -> torch.Tensor:
    """Return the window around a box.

    Each side of the box grows on both ends by a share of itself; one still shorter than the least
    has that length, the centre kept. A window that leaves the image is then shifted back, not cut;
    what is longer than the image is the image. So it always holds the part of the box inside.

    Args:
        box: (B, 4), half-open, in pixels.
        height: Rows of the image.
        width: Columns of the image.
        expand: Growth on each end, as a share of the side.
        min_size: Shortest side in pixels.

    Returns:
        float32 (B, 4), half-open, in pixels, within the image; float64 if the box is.
    """
    box = full_precision(box)
    low, high, image = box[:, :2], box[:, 2:], box.new_tensor([width, height])
    side = torch.minimum(((1 + 2 * expand) * (high - low)).clamp(min=min_size), image)
    start = torch.minimum(((low + high - side) / 2).clamp(min=0), image - side)
    return torch.cat([start, start + side], 1)


def soft_roi(p: torch.Tensor, expand: float = 0.2, min_size: float = 64.0) -> torch.Tensor:
    """Return the window around each soft mask: ``roi_around`` its ``soft_box``.

    Args:
        p: (B, H, W), probability in [0, 1].
        expand: See ``roi_around``.
        min_size: See ``roi_around``; in pixels of p.

    Returns:
        float32 (B, 4), half-open, in pixels of p; float64 if p is.

    Raises:
        PromptError: p is not (B, H, W).
    """
    return roi_around(soft_box(p), *p.shape[1:], expand, min_size)


def _weights(position: torch.Tensor, size: int) -> torch.Tensor:
    """Return the weights (B, N, size) of samples at positions (B, N) for linear interpolation.

    Beyond the first and last pixel's middle their value goes on.
    """
    position = position.clamp(0, size - 1)
    pixel = torch.arange(size, dtype=position.dtype, device=position.device)
    before = position.detach().floor()[..., None]
    part = position[..., None] - before
    return torch.where(pixel == before, 1 - part, torch.where(pixel == before + 1, part, 0.0))


def _sampled(image: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return an image (B, C, H, W) at positions (B, h) and (B, w): (B, C, h, w)."""
    down, along = _weights(rows, image.shape[2]), _weights(columns, image.shape[3])
    # Autocast would multiply in half precision.
    with torch.autocast(image.device.type, enabled=False):
        return down[:, None] @ image @ along[:, None].transpose(2, 3)


def crop_roi(image: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a window out of an image and bring it to a square of pixels.

    Pixel j of N takes the image at ``x0 + (j + 1/2) (x1 - x0) / N``, its middle, bilinearly. Beyond
    the middle of the image's last pixel that pixel's value goes on, where the reference faded to 0.

    Args:
        image: (B, C, H, W).
        box: (B, 4), half-open, in pixels of the image.
        size: Side of the square.

    Returns:
        float32 (B, C, size, size), float64 if image and box are; its gradient reaches image and
        box.
    """
    box = full_precision(box)
    image = full_precision(image).to(box.dtype)
    step = (torch.arange(size, dtype=box.dtype, device=box.device) + 0.5) / size
    at = box[:, :2, None] + step * (box[:, 2:] - box[:, :2])[..., None] - 0.5
    return _sampled(image, at[:, 1], at[:, 0])


def paste_roi(
    logits: torch.Tensor,
    box: torch.Tensor,
    height: int,
    width: int,
    outside: float | torch.Tensor = OUTSIDE_LOGIT,
) -> torch.Tensor:
    """Put the logits of a window back where it was cut: the inverse of ``crop_roi``.

    A pixel whose middle is in the window has the window's logit there, bilinearly; the values of
    the outermost go on to the window's edge. Every other pixel has ``outside`` as it is: sure
    background, or the logits that were there before.

    Args:
        logits: (B, s, s).
        box: (B, 4), half-open, in pixels of the image.
        height: Rows of the image.
        width: Columns of the image.
        outside: Logit outside the window; or logits (B, H, W).

    Returns:
        float32 (B, H, W), float64 if logits and box are; its gradient reaches logits, box and
        ``outside``.
    """
    box = full_precision(box)
    logits = full_precision(logits).to(box.dtype)
    shares = []
    for axis, pixels in ((1, height), (0, width)):
        middle = torch.arange(pixels, dtype=box.dtype, device=box.device) + 0.5
        start, end = box[:, axis, None], box[:, axis + 2, None]
        shares.append((middle - start) / (end - start).clamp(min=_LEAST_SIDE))
    rows, columns = (share * logits.shape[-1] - 0.5 for share in shares)
    pasted = _sampled(logits[:, None], rows, columns)[:, 0]
    in_rows, in_columns = ((share >= 0) & (share < 1) for share in shares)
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    if isinstance(outside, torch.Tensor):
        outside = outside.to(pasted.dtype)
    return torch.where(inside, pasted, outside)
