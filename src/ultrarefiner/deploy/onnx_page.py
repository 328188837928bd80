"""What the folder of ONNX files tells its readers: inputs, outputs and what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ultrarefiner.deploy.contents import Bundle
from ultrarefiner.deploy.onnx_graph import OPSET, TOLERANCE
from ultrarefiner.models.sam import PIXEL_MEAN, PIXEL_STD
from ultrarefiner.refine import parse_options

_CHOICES = {
    "single": "it is the result",
    "best": "of the others the one with the highest value in `iou_predictions` is the result",
    "union": "the pixelwise highest of the others is the result",
    "softmax": "the mean of the others, weighted by softmax(`iou_predictions` / temperature), is the "
    "result",
}


@dataclass(frozen=True)
class Network:
    """An ONNX file.

    Attributes:
        file: Its name.
        what: ``coarse``, ``encoder`` or ``decoder``.
        of: The model and the folds that it serves, in words.
        size: Height and width of the input, in pixels; of a decoder: of the frame.
        grid: Side of the embedding; 0 for a coarse model.
        family: Family of the SAM; empty for a coarse model.
    """

    file: str
    what: str
    of: str
    size: tuple[int, int]
    grid: int = 0
    family: str = ""

    @property
    def arrays(self) -> tuple[str, str]:
        """Inputs and outputs with their shapes."""
        height, width = self.size
        if self.what == "coarse":
            return f"`image` (B, 3, {height}, {width})", f"`logits` (B, 2, {height}, {width})"
        embedding = f"`embedding` (1, C, {self.grid}, {self.grid})"
        if self.what == "encoder":
            return f"`pixels` (1, 3, {height}, {width})", embedding
        mask = f"{4 * self.grid}, {4 * self.grid}"
        return (
            f"{embedding}, `point_coords` (1, N, 2), `point_labels` (1, N), "
            f"`mask_input` (1, 1, {mask}), `has_mask_input` (1,)",
            f"`low_res_logits` (1, K, {mask}), `iou_predictions` (1, K)",
        )


def onnx_page(bundle: Bundle, networks: Sequence[Network]) -> str:
    """Return the page of a folder of ONNX files.

    Args:
        bundle: The method that the files are of.
        networks: The files.
    """
    lines = [
        f"# ONNX files of {bundle.method}",
        "",
        f"Opset {OPSET}; every array is float32. Each file was run in onnxruntime when it was "
        "written, and gave",
        f"what torch gives (largest difference at most {TOLERANCE:g} of the largest output).",
        "",
        "| file | of | inputs | outputs |",
        "|---|---|---|---|",
        *(f"| `{one.file}` | {one.of} | {' | '.join(one.arrays)} |" for one in networks),
        *_coarse_lines(bundle),
    ]
    families = sorted({one.family for one in networks if one.family})
    for family in families:
        side = next(one.size[0] for one in networks if one.family == family)
        lines += _sam_lines(family, side, _choice(bundle))
    if bundle.refiner is not None and not families:
        lines += ["", f"The refiner `{bundle.refiner.name}` has no network, so it has no file."]
    if bundle.joint and not bundle.inner:
        lines += [
            "",
            f"`{bundle.model}` was trained end to end. Its prompts, window and fusion lie between "
            "these files, and are",
            "not in them: see `config` in the cards.",
        ]
    if bundle.guarded:
        lines += [
            "",
            f"A guard may put the coarse mask, of `{bundle.coarse_name}`, in the place of the refined "
            "one; it is not in",
            "these files: see `guard` in `../method.json`.",
        ]
    return "\n".join([*lines, "", "The whole method is described in `../method.json`.", ""])


def _coarse_lines(bundle: Bundle) -> list[str]:
    flips = " Do so for the image and its three flips, and take the mean." if bundle.flips else ""
    several = " the mean over the folds," if len(bundle.members) > 1 else ""
    return [
        "",
        "## Coarse model",
        "",
        "1. The image as 8-bit RGB, resized to the input's height and width whatever its aspect "
        "ratio: by area",
        "   mean where both sides shrink, else bilinearly. Divided by 255.",
        f"2. Softmax of `logits` over axis 1; class 1 is lesion.{flips}",
        f"3. Probabilities brought bilinearly to the image's own size,{several} then cut: lesion "
        f"from {bundle.threshold:g} on.",
    ]


def _choice(bundle: Bundle) -> str:
    """Return which of the decoder's masks is the result, in words."""
    if bundle.refiner is None:
        return "which one counts is `mask_choice` in the cards"
    options = parse_options(bundle.refiner.family, bundle.refiner.options)
    words = _CHOICES[options.mask_choice]
    usual = type(options).model_fields["passes"].default
    if options.passes != usual:
        words += f"; decoded {options.passes} times, each time with the best mask of the last"
    return words


def _sam_lines(family: str, side: int, choice: str) -> list[str]:
    mean, std = (", ".join(map(str, values)) for values in (PIXEL_MEAN, PIXEL_STD))
    how = (
        "bilinear without antialiasing (OpenCV), the other side cut off to whole pixels"
        if family == "ultrasam"
        else "bilinear with antialiasing (Pillow), the other side rounded half up"
    )
    return [
        "",
        f"## Refiner of family {family}",
        "",
        f"`pixels`: the image as 8-bit RGB, resized so that its longest side is {side} ({how}); "
        f"minus ({mean}),",
        f"divided by ({std}) in R, G, B; then padded with 0 on the right and below.",
        "",
        "`point_coords`: x and y in that frame: the image's own pixels times new / old size of each "
        "axis. The",
        "file adds the half pixel itself. `point_labels`: 1 lesion, 0 background, 2 and 3 the "
        "upper left and",
        "lower right corner of a box, -1 padding. Points first, then the corners; points without a "
        "box are",
        "followed by one point (0, 0) of label -1. N is 0 for a mask alone.",
        "",
        "`mask_input`: logits of a mask; zeros where there is none. `has_mask_input`: 1 or 0.",
        "",
        f"`low_res_logits`: mask 0 is the single one; {choice}.",
        f"Logits are brought bilinearly to {side} x {side}, the padding is cut off, then to the "
        "image's own size; lesion is",
        "above 0, cut last.",
        *(
            [
                "",
                "UltraSAM decodes twice: mask 0 of the first pass is `mask_input` of the second "
                "(a point is",
                "replaced by the box of that mask). Its other options are in `../method.json`.",
            ]
            if family == "ultrasam"
            else []
        ),
    ]
