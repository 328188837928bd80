"""Models as ONNX files, for programs without torch.

A coarse model is one file. A SAM is two: the image encoder, which runs once for an image, and
prompt encoder and mask decoder, which run once for a prompt. A file is written only if onnxruntime
computes from it what torch computes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling.image_encoder import Block
from segment_anything.utils.onnx import SamOnnxModel
from torch import nn

from ultrarefiner.deploy.bundle import read_bundle
from ultrarefiner.deploy.contents import Bundle
from ultrarefiner.deploy.onnx_graph import Case, require_packages, write_onnx
from ultrarefiner.deploy.onnx_page import Network, onnx_page
from ultrarefiner.errors import ConfigError, WeightsError
from ultrarefiner.io import atomic_directory, file_sha256, write_text
from ultrarefiner.models import build_model, height_width
from ultrarefiner.models.attention import FusedBlock, is_fused
from ultrarefiner.models.cards import read_card
from ultrarefiner.models.encoding import encode
from ultrarefiner.models.export import read_about
from ultrarefiner.models.finetuned import ENCODER_OF
from ultrarefiner.models.lora import merge_lora
from ultrarefiner.models.sam import load_sam
from ultrarefiner.models.weights import locate_weights
from ultrarefiner.training.checkpoint import load_model, load_strictly, load_weights
from ultrarefiner.training.segmented import END_TO_END

_COARSE = "coarse."  # how the names of the coarse part begin in a model trained end to end
_DECODER_INPUTS = ("embedding", "point_coords", "point_labels", "mask_input", "has_mask_input")
_DECODER_OUTPUTS = ("low_res_logits", "iou_predictions")
_PADDING, _CORNERS = -1.0, (2.0, 3.0)  # labels


def export_coarse_onnx(model: str | Path, card: str | Path, output: str | Path) -> None:
    """Write a trained coarse model as ONNX; see ``coarse_to_onnx``.

    Of a model that was trained end to end it writes the coarse part; the SAM beside it is a file of
    its own for ``export_encoder_onnx`` and ``export_decoder_onnx``.

    Args:
        model: ``model.safetensors``.
        card: ``card.json`` beside it.
        output: File to write.

    Raises:
        WeightsError: A file is absent or damaged, or they do not belong together.
        ConfigError: The packages of the extra ``onnx`` are not installed.
        UltraRefinerError: onnxruntime computes something else from the file; it is not kept.
        OutputError: The file cannot be written.
    """
    require_packages()
    net, size = _load_coarse(model, card)
    coarse_to_onnx(net, size, output)


def export_encoder_onnx(weights: str | Path, family: str, output: str | Path) -> None:
    """Write the image encoder of a SAM file as ONNX; see ``encoder_to_onnx``.

    Args:
        weights: File of the weights, or their name in the weights table.
        family: Row of ``SAM_FAMILIES``.
        output: File to write.

    Raises:
        WeightsError: The weights are absent, damaged or another model's.
        ConfigError: Unknown family or one that is not written so, or the packages of the extra
            ``onnx`` are not installed.
        UltraRefinerError: onnxruntime computes something else from the file; it is not kept.
        OutputError: The file cannot be written.
    """
    require_packages()
    encoder_to_onnx(_load_sam(locate_weights(weights), family), output)


def export_decoder_onnx(weights: str | Path, family: str, output: str | Path) -> None:
    """Write prompt encoder and mask decoder of a SAM file as ONNX; see ``decoder_to_onnx``.

    Args and errors are those of ``export_encoder_onnx``.
    """
    require_packages()
    decoder_to_onnx(_load_sam(locate_weights(weights), family), output)


def export_folder_onnx(folder: str | Path) -> Path:
    """Write the networks of an exported method as ONNX, into ``onnx/`` inside its folder.

    Files are ``{model}-fold{k}.onnx``, ``{refiner}-encoder.onnx`` and ``{refiner}-decoder.onnx``,
    the latter two with ``-fold{k}`` before the last part where folds have their own; folds whose
    encoders are the same share one. ``README.md`` tells inputs, outputs and normalisation. An older
    ``onnx/`` is replaced.

    Args:
        folder: What ``write_bundle`` wrote.

    Returns:
        The folder ``onnx/``.

    Raises:
        UltraRefinerError: The folder is no bundle or is damaged; or onnxruntime computes something
            else from a file. Nothing is kept then.
        ConfigError: The packages of the extra ``onnx`` are not installed.
        OutputError: A file cannot be written.
    """
    require_packages()
    bundle = read_bundle(folder)
    output = Path(folder) / "onnx"
    with atomic_directory(output) as made:
        networks = [*_coarse_networks(bundle, made), *_sam_networks(_sam_files(bundle), made)]
        write_text(made / "README.md", onnx_page(bundle, networks))
    return output


def coarse_to_onnx(net: nn.Module, size: int | Sequence[int], output: str | Path) -> None:
    """Write a coarse model: ``image`` -> ``logits``.

    ``image`` is float32 (B, 3, H, W) RGB in [0, 1], any B; ``logits`` float32 (B, classes, H, W).

    Args:
        net: The model; it stays as it is.
        size: Height and width of its input, or the side of a square.
        output: File to write.

    Raises:
        ConfigError: The packages of the extra ``onnx`` are not installed.
        UltraRefinerError: onnxruntime computes something else from the file; it is not kept.
        OutputError: The file cannot be written.
    """
    # A copy: some models keep tensors of their last call.
    net = copy.deepcopy(net).cpu().float().eval()
    random = _random()
    images = [torch.rand(count, 3, *height_width(size), generator=random) for count in (2, 1, 3)]
    with torch.no_grad():
        cases = [([image], [net(image)]) for image in images]
    for encoder in [one for one in net.modules() if isinstance(one, ImageEncoderViT)]:
        _release_blocks(encoder)
    shapes = ({0: torch.export.Dim("batch")},)
    write_onnx(net, ("image",), ("logits",), shapes, cases, Path(output))


def encoder_to_onnx(sam: Sam, output: str | Path) -> None:
    """Write a SAM's image encoder: ``pixels`` -> ``embedding``.

    ``pixels`` is float32 (1, 3, side, side): the image at its size in the frame, normalised, then
    padded with zeros (``models.sam.input_tensor``); ``embedding`` is float32 (1, C, grid, grid).

    Args:
        sam: The model; it stays as it is.
        output: File to write.

    Raises:
        ConfigError: The packages of the extra ``onnx`` are not installed.
        UltraRefinerError: onnxruntime computes something else from the file; it is not kept.
        OutputError: The file cannot be written.
    """
    sam = _plain_copy(sam)
    side = sam.image_encoder.img_size
    # Wide and low, as most ultrasound frames: the padding counts too.
    image = 255 * torch.rand(3, max(1, 3 * side // 4), side, generator=_random())
    pixels = sam.preprocess(image)[None]
    with torch.no_grad():
        cases = [([pixels], [encode(sam, pixels)])]
    if is_fused(sam.image_encoder):
        _release_blocks(sam.image_encoder)
    write_onnx(sam.image_encoder, ("pixels",), ("embedding",), None, cases, Path(output))


def decoder_to_onnx(sam: Sam, output: str | Path) -> None:
    """Write a SAM's prompt encoder and mask decoder: an embedding and a prompt -> all masks.

    Inputs, all float32, in the order of segment-anything's own ONNX model: ``embedding``
    (1, C, grid, grid); ``point_coords`` (1, N, 2), x and y in the model's frame, without the half
    pixel, any N; ``point_labels`` (1, N): 1 lesion, 0 background, 2 and 3 the first and second
    corner of a box, -1 padding; ``mask_input`` (1, 1, 4 grid, 4 grid) logits; ``has_mask_input``
    (1,), 1 or 0. Points without a box are followed by one point of padding, as in segment-anything;
    a mask alone has N = 0.

    Outputs: ``low_res_logits`` (1, K, 4 grid, 4 grid) and ``iou_predictions`` (1, K). Mask 0 is the
    single mask, the others are those for ambiguous prompts.

    Args:
        sam: The model; it stays as it is.
        output: File to write.

    Raises:
        ConfigError: The packages of the extra ``onnx`` are not installed.
        UltraRefinerError: onnxruntime computes something else from the file; it is not kept.
        OutputError: The file cannot be written.
    """
    sam = _plain_copy(sam)
    with torch.no_grad():
        cases = _decoder_cases(sam)
    points = torch.export.Dim("points")
    shapes = (None, {1: points}, {1: points}, None, None)
    write_onnx(_Decoder(sam).eval(), _DECODER_INPUTS, _DECODER_OUTPUTS, shapes, cases, Path(output))


class _Decoder(SamOnnxModel):
    """Prompt encoder and mask decoder, up to the low-resolution logits.

    The parent embeds prompts without branches. It also enlarges the masks, to image sizes that its
    file would have to be told; that is left to the reader of the file.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam, return_single_mask=False)
        # A constant of the file: the graph would compute it anew in each call.
        self.register_buffer("positions", sam.prompt_encoder.get_dense_pe().detach())

    def forward(
        self,
        embedding: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and predicted IoU of all masks; see ``decoder_to_onnx``."""
        return self.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=self.positions,
            sparse_prompt_embeddings=self._embed_points(point_coords, point_labels),
            dense_prompt_embeddings=self._embed_masks(mask_input, has_mask_input),
        )


class _ReleasedBlock(nn.Module):
    """A block of the image encoder as segment-anything computes it.

    ``FusedBlock`` takes its tokens in pieces, of which each would be nodes of its own in the graph.
    """

    def __init__(self, block: FusedBlock) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, block.attn
        self.norm2, self.mlp = block.norm2, block.mlp
        self.window_size = block.window_size

    forward = Block.forward


def _release_blocks(encoder: ImageEncoderViT) -> None:
    for index, block in enumerate(encoder.blocks):
        encoder.blocks[index] = _ReleasedBlock(block)


def _plain_copy(sam: Sam) -> Sam:
    """Return a copy on the CPU, in eval mode, its LoRA layers merged."""
    return merge_lora(copy.deepcopy(sam).cpu().float()).eval()


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _decoder_cases(sam: Sam) -> list[Case]:
    """Return random prompts of every kind as the file takes them, decoded by segment-anything."""
    encoder, random = sam.prompt_encoder, _random()
    side = encoder.input_image_size[0]
    features = torch.randn(1, encoder.embed_dim, *encoder.image_embedding_size, generator=random)
    logits = 5 * torch.randn(1, 1, *encoder.mask_input_size, generator=random)
    coords = side * torch.rand(1, 3, 2, generator=random)
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    box = torch.tensor([[[0.2, 0.3], [0.6, 0.7]]]) * side
    corners = torch.tensor([_CORNERS])
    none = coords[:, :0], labels[:, :0]
    cases = []
    for (points, marks), boxes, mask in (
        ((coords, labels), None, None),
        ((coords[:, :1], labels[:, :1]), None, logits),
        (none, box, None),
        ((coords, labels), box, None),
        (none, box, logits),
        (none, None, logits),
    ):
        sparse, dense = encoder(
            points=(points, marks) if points.shape[1] else None, boxes=boxes, masks=mask
        )
        expected = sam.mask_decoder.predict_masks(features, encoder.get_dense_pe(), sparse, dense)
        if boxes is not None:
            points, marks = torch.cat([points, boxes], 1), torch.cat([marks, corners], 1)
        elif points.shape[1]:
            points = torch.cat([points, torch.zeros(1, 1, 2)], 1)
            marks = torch.cat([marks, torch.tensor([[_PADDING]])], 1)
        given = torch.tensor([float(mask is not None)])
        mask = torch.zeros_like(logits) if mask is None else mask
        cases.append(([features, points, marks, mask, given], expected))
    return cases


@dataclass(frozen=True)
class _SamFile:
    """Weights of a SAM of a bundle: their refiner and family, their file, their fold if any."""

    name: str
    family: str
    path: Path
    fold: int | None

    @property
    def of(self) -> str:
        """What the file is, in words."""
        return self.name if self.fold is None else f"{self.name}, fold {self.fold}"

    @property
    def stem(self) -> str:
        """How names of ONNX files made of it begin."""
        return self.name if self.fold is None else f"{self.name}-fold{self.fold}"


def _coarse_networks(bundle: Bundle, made: Path) -> list[Network]:
    """Write the coarse models; also those that guarded masks give way to."""
    networks = []
    for one in bundle.members:
        models = {bundle.model: (one.model, one.card)}
        if one.fallback is not None:
            models[bundle.fallback] = (one.fallback, one.fallback_card)
        for name, (model, card) in models.items():
            net, size = _load_coarse(bundle.path(model), bundle.path(card))
            file = f"{name}-fold{one.fold}.onnx"
            coarse_to_onnx(net, size, made / file)
            what = f"{name}, fold {one.fold}"
            networks.append(Network(file, "coarse", what, height_width(size)))
    return networks


def _sam_files(bundle: Bundle) -> list[_SamFile]:
    """Return the SAMs of a bundle: refiners, and parts of models that were trained end to end."""
    files, part = [], bundle.refiner
    for one in bundle.members:
        if one.sam is not None and not bundle.inner:
            family = read_card(bundle.path(one.card))["architecture"]["refiner"]["model"]
            files.append(_SamFile(bundle.model, family, bundle.path(one.sam), one.fold))
        if part is not None and one.refiner is not None:
            files.append(_SamFile(part.name, part.family, bundle.path(one.refiner), one.fold))
    if part is not None and part.weights is not None:
        files.append(_SamFile(part.name, part.family, bundle.path(part.weights), None))
    return files


def _sam_networks(files: Sequence[_SamFile], made: Path) -> list[Network]:
    """Write encoders and decoders; files whose encoders are the same share one."""
    alike: dict[str, list[_SamFile]] = {}
    for one in files:
        digest = read_about(one.path).get(ENCODER_OF) or file_sha256(one.path)
        alike.setdefault(digest, []).append(one)
    networks = []
    for group in alike.values():
        stem = group[0].name if len(alike) == 1 else group[0].stem
        for one in group:
            sam = _load_sam(one.path, one.family)
            side, grid = sam.image_encoder.img_size, sam.prompt_encoder.image_embedding_size[0]
            about = {"size": (side, side), "grid": grid, "family": one.family}
            if one is group[0]:
                encoder_to_onnx(sam, made / f"{stem}-encoder.onnx")
                of = "; ".join(other.of for other in group)
                networks.append(Network(f"{stem}-encoder.onnx", "encoder", of, **about))
            decoder_to_onnx(sam, made / f"{one.stem}-decoder.onnx")
            networks.append(Network(f"{one.stem}-decoder.onnx", "decoder", one.of, **about))
    return networks


def _load_sam(path: Path, family: str) -> Sam:
    if family in ("sam_unet", "medsam2"):
        raise ConfigError(
            f"{path} is of family {family}, whose networks are not written as ONNX; use `ultrarefiner "
            "predict`, or `ultrarefiner export` for a plain checkpoint"
        )
    return load_sam(path, family)


def _load_coarse(model: str | Path, card: str | Path) -> tuple[nn.Module, int | Sequence[int]]:
    """Return a coarse model, or the coarse part of one trained end to end, and its input's size."""
    facts = read_card(card)
    if facts["phase"] != END_TO_END:
        net, facts = load_model(model, card)
        return net, facts["architecture"]["image_size"]
    if not Path(model).is_file() or file_sha256(model) != facts["weights_sha256"]:
        raise WeightsError(
            f"{model} is absent or not the file that {card} describes. Put the files of one training "
            "together."
        )
    net = build_model(**facts["architecture"]["coarse"])
    state = {
        name.removeprefix(_COARSE): value
        for name, value in load_weights(model).items()
        if name.startswith(_COARSE)
    }
    load_strictly(net, state, model)
    return net, facts["architecture"]["image_size"]
