"""Time SAM's image encoder against the released one, turn by turn, on the same weights.

ViT-B at 1024 pixels with made-up weights, in float32 and, where the processor has it, in bfloat16.
The peak memory of each side is measured in a process of its own: resident memory at its highest
during one call, less what was resident before the call, so without the weights. Run:
``python benchmarks/encoder.py``; it ends with status 1 below a required ratio.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from prompt_modes import cases, synthetic_sam
from segment_anything.modeling import Sam

from ultrarefiner.models.attention import fuse_attention
from ultrarefiner.models.encoding import encode
from ultrarefiner.models.sam import input_tensor

GFLOP = 972.1  # of ViT-B at 1024: linear layers 726, attention 235, convolutions 11
FASTER, FASTER_BF16, LEANER = 1.4, 2.5, 0.6
CLOSE, AGREE = 1e-4, 0.001


def both_sides() -> tuple[Sam, Sam]:
    """Return the released model and ours, with the same weights."""
    released = synthetic_sam().requires_grad_(False)
    ours = copy.deepcopy(released)
    fuse_attention(ours.image_encoder)
    return released, ours


def seconds(
    function: Callable[[], torch.Tensor], device: torch.device
) -> tuple[float, torch.Tensor]:
    """Return the wall time of one call, and its value."""
    start = time.perf_counter()
    value = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def matmul_peak(dtype: torch.dtype, device: torch.device, side: int = 4096) -> float:
    """Return GFLOP/s of a large matrix product, the best of ten."""
    a = torch.randn(side, side, device=device).to(dtype)
    best = min(seconds(lambda: a @ a, device)[0] for _ in range(10))
    return 2 * side**3 / best / 1e9


def resident(entry: str) -> int:
    """Return an entry of the process's memory status in bytes: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(entry)).split()[1])


def peak_memory(ours: bool, threads: int) -> float:
    """Return how far one call of an encoder drives the process's memory up, in bytes."""
    torch.set_num_threads(threads)
    sam = both_sides()[ours]
    pixels = torch.randn(1, 3, 1024, 1024)
    with torch.inference_mode():
        sam.image_encoder.patch_embed(pixels)  # libraries make their own buffers once
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        sam.image_encoder(pixels)
    return resident("VmHWM") - before


def in_its_own_process(ours: bool, threads: int) -> float:
    """Return ``peak_memory`` of a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory, (ours, threads))


def final_masks(sam: Sam, embedding: torch.Tensor, input_hw: tuple[int, int]) -> np.ndarray:
    """Return the masks at the original size of a box and of a point prompt, bool (6, H, W)."""
    box = torch.tensor([[300.0, 250.0, 700.0, 600.0]], device=sam.device)
    point = torch.tensor([[[500.0, 420.0]]], device=sam.device)
    label = torch.ones(1, 1, dtype=torch.int, device=sam.device)
    masks = []
    for prompt in ({"boxes": box, "points": None}, {"boxes": None, "points": (point, label)}):
        sparse, dense = sam.prompt_encoder(**prompt, masks=None)
        logits, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        masks.append(sam.postprocess_masks(logits, input_hw, (500, 600))[0] > 0)
    return torch.cat(masks).cpu().numpy()


def on_a_gpu(released: Sam, ours: Sam, pixels: torch.Tensor) -> None:
    """Print images per second, share of the peak, memory and difference for several batch sizes."""
    device = pixels.device
    peak = matmul_peak(torch.bfloat16, device, 8192)
    wanted = encode(released, pixels)
    print(f"  {torch.cuda.get_device_name(device)}, bfloat16 peak {peak / 1e3:.0f} TFLOP/s")
    for batch in (1, 2, 4, 8, 16):
        images = pixels.expand(batch, -1, -1, -1).contiguous()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        times = [seconds(lambda i=images: encode(ours, i, "bfloat16"), device) for _ in range(12)]
        best = float(np.median([t for t, _ in times[2:]]))
        memory = (torch.cuda.max_memory_allocated() - before) / 1e9
        apart = float((times[-1][1][:1] - wanted).abs().max())
        print(
            f"  batch {batch:2d}: {batch / best:7.1f} images/s, {batch * GFLOP / best / peak:.0%} of "
            f"the peak, {memory:.1f} GB, max difference {apart:.3f}"
        )


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="turns of all sides, median taken")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    released, ours = (sam.to(device) for sam in both_sides())
    image, _ = next(cases(1, seed=0))
    pixels, input_hw = input_tensor(image, released)
    sides = {
        "released": lambda: encode(released, pixels),
        "float32": lambda: encode(ours, pixels),
        "bfloat16": lambda: encode(ours, pixels, "bfloat16"),
    }
    times: dict[str, list[float]] = {name: [] for name in [*sides, "peak"]}
    values: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for turn in range(options.repeats + 1):
            times["peak"].append(matmul_peak(torch.float32, device))
            # Turn by turn, so that other load on the machine meets all sides alike.
            for name, call in sides.items():
                spent, values[name] = seconds(call, device)
                times[name] += [spent] if turn else []
        masks = {name: final_masks(ours, value, input_hw) for name, value in values.items()}
    median = {name: float(np.median(spent)) for name, spent in times.items()}
    apart = float((values["float32"] - values["released"]).abs().max())
    pixels_apart = float((masks["bfloat16"] != masks["released"]).mean(axis=(1, 2)).max())
    peak = max(times["peak"])

    print(f"ViT-B encoder at 1024, {options.threads} threads, {device.type}, median of turns")
    print(f"  released  float32  {median['released']:6.2f} s")
    results = []
    for name, required in (("float32", FASTER), ("bfloat16", FASTER_BF16)):
        ratio = float(np.median(np.divide(times["released"], times[name])))
        results.append(ratio >= required)
        print(f"  ours     {name:>8}  {median[name]:6.2f} s   {ratio:.2f} x, required {required} x")
    print(
        f"  float32: {GFLOP / median['float32']:.0f} GFLOP/s, "
        f"{GFLOP / median['float32'] / peak:.0%} of the {peak:.0f} of a large matrix product "
        f"(released {GFLOP / median['released'] / peak:.0%}); max difference {apart:.1e}"
    )
    print(f"  bfloat16: masks differ in at most {pixels_apart:.3%} of the pixels")
    results += [apart <= CLOSE, pixels_apart <= AGREE]
    if device.type == "cpu":
        theirs, own = (in_its_own_process(side, options.threads) for side in (False, True))
        print(
            f"  peak memory of a call: {own / 1e6:.0f} MB against {theirs / 1e6:.0f} MB, "
            f"{own / theirs:.2f} x, allowed {LEANER} x"
        )
        results.append(own <= LEANER * theirs)
    else:
        with torch.inference_mode():
            on_a_gpu(released, ours, pixels)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
