"""Objects followed from slice to slice by SAM 2's memory, in memory that does not grow.

Source of every step: Ravi et al., SAM 2, arXiv 2408.00714, as MedSAM2 applies it to volumes. Kept
are the prompted slices, the memories of the last slices that attention reaches, and the pointers of
a few more: never a volume's worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ultrarefiner.models.medsam2_model import Decoded, MedSam2, unpack

ABSENT = -1024.0
"""Logit of every pixel of an object that is not in the slice."""

MOST_POINTERS = 16
"""Slices whose object pointers a slice sees, beside itself."""

MOST_PROMPTED = 4
"""Prompted slices that are remembered: the first one and the last."""

_SCALE, _BIAS = 20.0, -10.0  # of a mask's probability, as the memory encoder takes it
_TEMPERATURE = 10_000.0  # of the sines that tell how far a pointer lies back
_FEW_POINTS = 1  # up to so many, a prompt is ambiguous: the best of three masks is taken


@dataclass(frozen=True)
class TrackedPrompt:
    """The prompt of one object on one slice, embedded.

    Attributes:
        sparse: (1, T, C) tokens, T = 0 for a mask alone.
        dense: (1, C, grid, grid).
        points: Points of the prompt, of which a box has two.
        mask: The mask itself where it is to be the result; see ``Tracker.prompt``. float32
            (1, 1, side, side) in [0, 1] in the frame.
    """

    sparse: torch.Tensor
    dense: torch.Tensor
    points: int
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Tracked:
    """Objects on one slice.

    Attributes:
        index: The slice.
        logits: (N, 4 grid, 4 grid) low-resolution logits; ``ABSENT`` where the object is not there.
        raw: The same without that.
        ious: (N,) predicted IoU of the chosen masks.
        presence: (N,) logit of whether the object is there.
        pointers: (N, C) object pointers.
        memory: (N, M, grid, grid) what is remembered of the slice.
    """

    index: int
    logits: torch.Tensor
    raw: torch.Tensor
    ious: torch.Tensor
    presence: torch.Tensor
    pointers: torch.Tensor
    memory: torch.Tensor


@dataclass(frozen=True)
class _Chosen:
    """A mask for each object, the token it was made of, and whether that token is of an object."""

    logits: torch.Tensor
    ious: torch.Tensor
    tokens: torch.Tensor
    presence: torch.Tensor
    of_object: torch.Tensor


class Tracker:
    """N objects on their way through the slices in one direction.

    Args:
        model: The model; gradients flow where they are wanted.
        count: Slices of the volume.
        reverse: Whether the slices come in falling order.
        binarise: Whether masks of prompts are remembered as 0 and 1.
    """

    def __init__(
        self, model: MedSam2, count: int, reverse: bool = False, binarise: bool = True
    ) -> None:
        self.model, self.memory = model, model.memory
        self.reverse, self.binarise = reverse, binarise
        self._pointers_seen = min(count, MOST_POINTERS)
        self._prompted: dict[int, Tracked] = {}
        self._recent: dict[int, Tracked] = {}
        self._positions = model.image_positions()
        sizes = model.architecture
        self._slice_positions = model.image_encoder.positions(
            model.device, sizes.grid, sizes.hidden
        )
        self._memory_positions = self.memory.encoder.position_encoding(
            torch.Size((1, sizes.memory, sizes.grid, sizes.grid)), model.device, torch.float32
        )

    def prompt(
        self, index: int, features: torch.Tensor, prompts: Sequence[TrackedPrompt]
    ) -> Tracked:
        """Take up the objects on a slice, one prompt each.

        Once something is remembered a prompted slice sees it too. Every mask comes out of the
        decoder; but a prompt whose ``mask`` is given has that for its result, as SAM 2 takes
        masks: then nothing was segmented on this slice.

        Args:
            index: The slice.
            features: (1, 4 C, grid, grid), packed.
            prompts: As many as there are objects.
        """
        embedding, finer = unpack(features)
        fresh = not self._prompted
        image = self.model.without_memory(embedding) if fresh else self._remember(index, embedding)
        parts = []
        for number, one in enumerate(prompts):
            if one.mask is not None:
                parts.append(self._given(one.mask, embedding, finer))
                continue
            of = image if len(image) == 1 else image[number : number + 1]
            sparse = one.sparse if one.sparse.shape[1] else self.model.padding_tokens(2)
            parts.append(self._decode(of, finer, sparse, one.dense, one.points <= _FEW_POINTS))
        chosen = _Chosen(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("logits", "ious", "tokens", "presence", "of_object")
            )
        )
        given = torch.tensor([one.mask is not None for one in prompts], device=image.device)
        tracked = self._tracked(index, embedding, chosen, given, prompted=True)
        self._recent.pop(index, None)
        self._prompted[index] = tracked
        if len(self._prompted) > MOST_PROMPTED:
            # The first stays: it is where the object was looked up.
            del self._prompted[list(self._prompted)[1]]
        return tracked

    def step(self, index: int, features: torch.Tensor) -> Tracked:
        """Find the objects on the next slice; see ``prompt`` for the arguments."""
        embedding, finer = unpack(features)
        image = self._remember(index, embedding)
        sparse = self.model.padding_tokens(2).expand(len(image), -1, -1)
        dense = self.model.prompt_tokens()[1].expand(len(image), -1, -1, -1)
        chosen = self._decode(image, finer, sparse, dense, multimask=True)
        never = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        tracked = self._tracked(index, embedding, chosen, never, prompted=False)
        self._recent[index] = tracked
        reach = max(self.model.architecture.memories - 1, self._pointers_seen - 1)
        for old in [one for one in self._recent if abs(one - index) >= reach]:
            del self._recent[old]
        return tracked

    def _decode(
        self,
        image: torch.Tensor,
        finer: list[torch.Tensor],
        sparse: torch.Tensor,
        dense: torch.Tensor,
        multimask: bool,
    ) -> _Chosen:
        out: Decoded = self.model.decode(image, finer, sparse, dense, self._positions, multimask)
        best = out.ious.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        token = best if out.tokens.shape[1] > 1 else torch.zeros_like(best)
        return _Chosen(
            out.logits[rows, best].float(),
            out.ious[rows, best].float(),
            out.tokens[rows, token],
            out.presence[:, 0].float(),
            out.presence[:, 0] > 0,
        )

    def _given(
        self, mask: torch.Tensor, embedding: torch.Tensor, finer: list[torch.Tensor]
    ) -> _Chosen:
        """Return a mask as its own result; the decoder gives but the object's pointer."""
        low_res = functional.interpolate(
            mask * _SCALE + _BIAS,
            (4 * self.model.architecture.grid,) * 2,
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        _, dense = self.model.prompt_tokens(mask=self.memory.mask_downsample(mask)[0])
        made = self._decode(embedding, finer, self.model.padding_tokens(2), dense, multimask=False)
        there = (mask > 0).any()
        return _Chosen(
            low_res[:, 0],
            torch.ones_like(made.ious),
            made.tokens,
            (_SCALE * there + _BIAS).reshape(1),
            made.of_object & there,
        )

    def _tracked(
        self,
        index: int,
        embedding: torch.Tensor,
        chosen: _Chosen,
        given: torch.Tensor,
        prompted: bool,
    ) -> Tracked:
        absent = (chosen.presence <= 0) & ~given
        logits = torch.where(
            absent[:, None, None], torch.full_like(chosen.logits, ABSENT), chosen.logits
        )
        of_object = chosen.of_object.float()[:, None]
        pointers = self.memory.pointer(chosen.tokens)
        pointers = of_object * pointers + (1 - of_object) * self.memory.no_object_pointer
        seen = (chosen.presence > 0).float()[:, None]
        return Tracked(
            index,
            logits,
            chosen.logits,
            chosen.ious,
            chosen.presence,
            pointers,
            self._memorise(embedding, logits, seen, prompted),
        )

    def _memorise(
        self,
        embedding: torch.Tensor,
        logits: torch.Tensor,
        seen: torch.Tensor,
        prompted: bool,
    ) -> torch.Tensor:
        """Encode a slice and its masks to memories (N, M, grid, grid)."""
        side = self.model.architecture.image_size
        full = functional.interpolate(
            logits[:, None], (side, side), mode="bilinear", align_corners=False
        )
        soft = torch.sigmoid(full)
        if prompted and self.binarise:
            soft = (full > 0).float()
        memory, _ = self.memory.encoder(
            embedding.expand(len(logits), -1, -1, -1), soft * _SCALE + _BIAS
        )
        memory = (
            memory + (1 - seen[..., None, None]) * self.memory.no_object_spatial[..., None, None]
        )
        # As published: half of the digits are kept.
        return memory.to(torch.bfloat16)

    def _remember(self, index: int, embedding: torch.Tensor) -> torch.Tensor:
        """Return the embedding as the memories let it be seen by each object, (N, C, grid, grid)."""
        sign = -1 if self.reverse else 1
        memories = [(0, one) for one in self._prompted.values()]
        for back in range(self.model.architecture.memories - 1, 0, -1):
            one = self._recent.get(index - sign * back)
            if one is not None:
                memories.append((back, one))
        keys, places = [], []
        for back, one in memories:
            keys.append(_as_tokens(one.memory))
            when = self.memory.temporal_positions[back - 1]  # the last is that of prompted slices
            place = _as_tokens(self._memory_positions) + when
            places.append(place.expand(-1, len(one.memory), -1))
        pointers, when = self._remembered_pointers(index)
        count = len(memories[0][1].memory)
        pieces = 0
        if len(pointers):
            dim = self.model.architecture.memory
            split = pointers.shape[-1] // dim
            tokens = pointers.reshape(-1, count, split, dim).permute(0, 2, 1, 3).flatten(0, 1)
            keys.append(tokens)
            places.append(when[:, None].expand(-1, count, -1).repeat_interleave(split, dim=0))
            pieces = len(tokens)
        sizes = self.model.architecture
        seen = self.memory.attention(
            current_vision_features=_as_tokens(embedding).expand(-1, count, -1),
            current_vision_position_embeddings=_as_tokens(self._slice_positions),
            memory=torch.cat([one.float() for one in keys]),
            memory_posision_embeddings=torch.cat(places),
            num_object_pointer_tokens=pieces,
        )
        # (1, N, grid * grid, C)
        return seen[0].transpose(1, 2).reshape(count, sizes.hidden, sizes.grid, sizes.grid)

    def _remembered_pointers(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pointers (P, N, C) of slices that lie behind, and how far, encoded (P, M)."""
        sign = -1 if self.reverse else 1
        found = [
            ((index - one.index) * sign, one.pointers)
            for one in self._prompted.values()
            if (index - one.index) * sign >= 0
        ]
        for back in range(1, self._pointers_seen):
            one = self._recent.get(index - sign * back)
            if one is not None:
                found.append((back, one.pointers))
        if not found:
            return torch.empty(0), torch.empty(0)
        distances = torch.tensor([back for back, _ in found], dtype=torch.float32)
        shares = distances.to(self.model.device) / float(max(self._pointers_seen - 1, 1))
        encoded = self.memory.pointer_time(_sines(shares, self.model.architecture.hidden))
        return torch.stack([one for _, one in found]), encoded


def _as_tokens(maps: torch.Tensor) -> torch.Tensor:
    """Bring (B, C, h, w) to (h * w, B, C)."""
    return maps.flatten(2).permute(2, 0, 1)


def _sines(shares: torch.Tensor, dim: int) -> torch.Tensor:
    """Encode numbers (P,) by sines and cosines, (P, dim); Vaswani et al., 2017."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=shares.device)
    angles = shares[:, None] * torch.exp(-math.log(_TEMPERATURE) * (2 * (steps // 2) / half))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
