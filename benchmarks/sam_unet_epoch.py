"""Time an epoch of SAM-UNet's training with the frozen part from the shelf against computing it.

ViT-B with a ResNet-50 at 256, made-up weights, five boxes of each image, the authors' loss, Adam.
Both sides take the same steps of one training, as ``train_refiner`` takes them. They differ in where
the tokens before the first adapter come from: read from the shelf with the pixels, or computed in
the step (patch embedding and two of twelve blocks). What comes after them needs gradients and stays
the same, so little can be saved; what it is stands here. Losses have to agree. What is measured is
the processor's time of one thread. Run: ``python benchmarks/sam_unet_epoch.py``; it ends with
status 1 below the required ratio.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from prompt_modes import cases

from ultrarefiner.config import FinetuneConfig
from ultrarefiner.models.trainable import set_trainable
from ultrarefiner.refine.begin import begin_refiner
from ultrarefiner.refine.sam import SamRefiner
from ultrarefiner.refine.shelf import Shelf
from ultrarefiner.training.data import PreparedCases
from ultrarefiner.training.engine import set_train_mode
from ultrarefiner.training.features import features_of
from ultrarefiner.training.refiner_items import Items
from ultrarefiner.training.refiner_task import RefinerTask

REQUIRED = 1.02
AGREE = 2e-3  # relative, at any step: what is kept is rounded, and training carries that on
RECIPE = {
    "data": "truth",
    "masks_per_image": 5,
    "box_shift": 5,
    "batch_size": 2,
    "epochs": 15,
    "optimizer": "adam",
    "hflip": 0.0,
    "loss": {
        **{"bce": 0.0, "dice": 20.0, "focal": 1.0, "focal_alpha": 0.25},
        **{"iou": 0.0, "change_penalty": 0.0},
    },
}


class Side:
    """A training with its own copy of the model."""

    def __init__(
        self, config: FinetuneConfig, refiner: SamRefiner, items: Items, shelf: Shelf | None
    ) -> None:
        own = type(refiner).of_model(
            copy.deepcopy(refiner.sam), refiner.weights_sha256, "cpu", refiner.options
        )
        self.task = RefinerTask(config, own, features_of(own, shelf), items)
        set_train_mode(self.task.model)
        parameters = [one for one in self.task.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, 1e-5)
        self.losses: list[float] = []
        self.batches = self.task.batches(0)

    def step(self) -> float:
        """Take one step, note its loss, and return its processor time in seconds."""
        start = time.process_time()
        losses, _ = self.task.losses(self.task.model, next(self.batches))
        self.optimizer.zero_grad()
        losses.mean().backward()
        self.optimizer.step()
        self.losses.append(float(losses.detach().mean()))
        return time.process_time() - start


def main() -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=16, help="cases, two in a step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = FinetuneConfig.model_validate(RECIPE)
    refiner, _ = begin_refiner("sam_unet", None, "cpu", {"init": "random", "resnet": 50})
    set_trainable(refiner.sam, config)

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "phantom" / "prepared"
        (prepared / "npz").mkdir(parents=True)
        names = [f"phantom__{number}" for number in range(options.cases + 1)]
        for name, (image, lesion) in zip(names, cases(len(names), seed=0), strict=True):
            np.savez_compressed(
                prepared / "npz" / f"{name}.npz",
                image=image,
                label=lesion.astype(np.uint8),
                original_size=np.array(lesion.shape),
            )
        items = Items(config, PreparedCases(prepared), names[:-1], names[-1:])
        shelf = Shelf(Path(folder) / "shelf", 10**10)
        sides = {
            "shelf": Side(config, refiner, items, shelf),
            "computed": Side(config, refiner, items, None),
        }
        kept = sides["shelf"].task
        views = [kept.view(choices[0]) for choices in items.slots]
        start = time.process_time()
        kept.features.prepare((view.name, False, view.pixels) for view in views)
        once = (time.process_time() - start) / len(views)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(options.cases // 2):
            for name, side in sides.items():
                spent = side.step()
                if number:  # the first steps of a process take longer
                    times[name].append(spent)

    losses = np.array([side.losses for side in sides.values()])
    apart = np.abs(losses[1] - losses[0]) / losses[0]
    median = {name: float(np.median(spent)) for name, spent in times.items()}
    ratio = float(np.median(np.array(times["computed"]) / np.array(times["shelf"])))
    print(f"SAM-UNet, ViT-B and ResNet-50 at 256, {options.cases} cases, processor time, medians")
    print(f"  frozen part from the shelf   {median['shelf']:7.3f} s a step of two images")
    print(f"  frozen part in each step     {median['computed']:7.3f} s, {ratio:.3f} x as long")
    print(f"  saved                        {100 * (1 - 1 / ratio):7.1f} % of an epoch")
    print(f"  required {REQUIRED} x")
    print(f"  made and stored once, in {once:.2f} s an image")
    print(
        f"  losses {losses[0, 0]:.3f} to {losses[0, -1]:.3f}; sides differ by at most "
        f"{apart.max():.1e} (relative, allowed {AGREE})"
    )
    return 0 if ratio >= REQUIRED and apart.max() <= AGREE else 1


if __name__ == "__main__":
    sys.exit(main())
