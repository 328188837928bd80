"""Small datasets of volumes with the masks of several methods, as the jobs before leave them."""

import numpy as np

from ultrarefiner.datasets.volume_records import SLICE_COLUMNS, VOLUME_COLUMNS
from ultrarefiner.evaluation.volume_summary import summarise_volumes
from ultrarefiner.evaluation.volumes import score_volumes
from ultrarefiner.images import write_mask, write_png
from ultrarefiner.io import read_rows, write_rows

SHAPE = (6, 40, 32)  # slices, rows, columns
SPACING = (2.0, 0.5, 0.8)
METHODS = {
    # refiner, prompt, kind, source, mode
    "unet": ("", "", "", "none", "slices"),
    "plain-box": ("plain", "box", "box", "coarse", "slices"),
    "memory-box": ("memory", "box", "box", "coarse", "memory"),
    "plain-truth": ("plain", "truth", "box", "ground_truth", "slices"),
    "memory-truth": ("memory", "truth", "box", "ground_truth", "memory"),
}
PAIRS = [
    {"method": f"memory-{prompt}", "reference": f"plain-{prompt}"} for prompt in ("box", "truth")
]


def ball(centre, radii, shape=SHAPE):
    grid = np.indices(shape).astype(float)
    far = sum(((grid[i] - centre[i]) / radii[i]) ** 2 for i in range(3))
    return far <= 1


def write_masks(folder, cases, volume):
    for case, mask in zip(cases, volume, strict=True):
        write_mask(folder / f"{case}.png", mask)


class VolumeData:
    """A dataset of volumes: volumes ``i`` of a group ``i // 2`` are in a fold."""

    def __init__(self, root, dataset="breast", count=8, spacing=SPACING, empty=()):
        self.root, self.dataset, self.spacing = root / dataset, dataset, spacing
        self.names = [f"{dataset}__v{i}" for i in range(count)]
        self.cases = {
            name: [f"{name}_slice_{z:04d}" for z in range(SHAPE[0])] for name in self.names
        }
        rng = np.random.default_rng(5)
        self.truth = {}
        for i, name in enumerate(self.names):
            truth = ball((2.5, 20 + i % 3, 16), (2.2, 8 + i % 4, 6))
            self.truth[name] = truth & (i not in empty)
            write_masks(self.root / "prepared/masks", self.cases[name], self.truth[name])
            image = np.clip(rng.normal(120, 20, SHAPE) - 50 * truth, 0, 255).astype(np.uint8)
            for case, plane in zip(self.cases[name], image, strict=True):
                rgb = np.repeat(plane[..., None], 3, axis=2)
                write_png(self.root / "prepared/images" / f"{case}.png", rgb)
        self.write_tables()

    @property
    def tables(self):
        """Return where the tables are, as jobs are told."""
        base = self.root
        places = {name: base / "volumes" / f"{name}.csv" for name in ("volumes", "slices")}
        return places | {"splits": base / "splits.csv"}

    def write_tables(self):
        steps = dict(
            zip(
                ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm"),
                self.spacing or ("", "", ""),
                strict=True,
            )
        )
        rows = [
            {
                "volume": name,
                "image": f"raw/{name}.nii.gz",
                "mask": f"raw/{name}_label.nii.gz",
                "group": f"p{i // 2}",
                "label": "",
                "axis": 2,
                "rows_first": "yes",
                "size_0": SHAPE[1],
                "size_1": SHAPE[2],
                "size_2": SHAPE[0],
                **steps,
                "affine": " ".join(map(str, np.eye(4).ravel())),
            }
            for i, name in enumerate(self.names)
        ]
        write_rows(self.tables["volumes"], VOLUME_COLUMNS, rows)
        slices = [
            {"case": case, "volume": name, "index": z}
            for name in self.names
            for z, case in enumerate(self.cases[name])
        ]
        write_rows(self.tables["slices"], SLICE_COLUMNS, slices)
        split = [
            {"case": case, "group": f"p{i // 2}", "fold": fold, "role": role}
            for fold in (0, 1)
            for i, name in enumerate(self.names)
            for role in [("test", "train")[i // 2 % 2 != fold]]
            for case in self.cases[name]
        ]
        write_rows(self.tables["splits"], ["case", "group", "fold", "role"], split)

    def of_fold(self, fold):
        return [name for i, name in enumerate(self.names) if i // 2 % 2 == fold]

    def mask(self, name, method):
        """Return what a method predicts: propagated masks are nearer, oracles nearest."""
        i = self.names.index(name)
        step = {"unet": 4, "plain-box": 3, "memory-box": 1 + i % 2}.get(method, 0)
        mask = np.roll(self.truth[name], step, axis=1)
        if method == "plain-truth":
            mask[2] = False
        return mask

    def shelve(self, method, part, seconds=None):
        """Write and score the masks of a method on a part; return its table and its entry."""
        fold = int(part[-1])
        masks = self.root / "masks" / method / part
        for name in self.of_fold(fold):
            write_masks(masks, self.cases[name], self.mask(name, method))
        refiner, prompt, kind, _, mode = METHODS[method]
        table = self.root / "volume_scores" / method / f"{part}.csv"
        self.score(method, part, masks, table)
        benchmark = self.root / f"{method}-{part}.tsv"
        if seconds is not None:
            benchmark.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t100.0\n")
        entry = {
            "dataset": self.dataset,
            "method": method,
            "part": part,
            "refiner": refiner,
            "prompt": prompt,
            "prompt_kind": kind,
            "mode": mode,
            "benchmarks": [str(benchmark)],
        }
        return table, entry

    def score(self, method, part, masks, output):
        source = METHODS[method][3]
        score_volumes(
            method=method,
            dataset=self.dataset,
            part=part,
            masks=masks,
            truth=self.root / "prepared/masks",
            **self.tables,
            trained_on=self.dataset,
            prompt_source=source,
            oracle=source == "ground_truth",
            selection="validation",
            seen="no",
            output=output,
        )
        return read_rows(output)

    def pictures(self, methods=METHODS):
        """Return the entries of the pictures."""
        return [
            {
                "dataset": self.dataset,
                "method": method,
                "evaluation": "folds",
                "member": "single",
                "fold": fold,
                "images": self.root / "prepared/images",
                "truth": self.root / "prepared/masks",
                "coarse": self.root / "masks/unet" / f"fold{fold}",
                "masks": self.root / "masks" / method / f"fold{fold}",
                "oracle": METHODS[method][3] == "ground_truth",
                "volumes": self.tables["volumes"],
                "slices": self.tables["slices"],
            }
            for method in methods
            for fold in (0, 1)
        ]


def summarise(datasets, report, pairs=PAIRS, methods=METHODS, seconds=3.0):
    """Shelve and summarise datasets of volumes; return the paths of the three tables."""
    made = [
        data.shelve(method, f"fold{fold}", seconds)
        for data in datasets
        for method in methods
        for fold in (0, 1)
    ]
    names = ("volume_scores", "volumes", "volume_comparisons")
    paths = [report / f"{name}.csv" for name in names]
    tables, entries = zip(*made, strict=True)
    summarise_volumes(tables, entries, pairs, *paths, bootstrap=200)
    return paths
