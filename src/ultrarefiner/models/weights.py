"""Published weights: where they come from, under which terms, and where they are on the disk."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ultrarefiner.errors import WeightsError
from ultrarefiner.registry import Registry, unknown_name

FOLDER = "resources/weights"


@dataclass(frozen=True)
class WeightsFile:
    """A row of the table of weights.

    Attributes:
        file: Name of the file in the weights folder.
        urls: Where it is published, the authors' own address first.
        bytes: Size of the published file.
        licence: SPDX name of the licence.
        terms: What the licence asks of a user, and what else to know before a use.
        citation: The paper to cite.
        family: Which loader reads it: "transunet", "resnet", or a family of ``load_sam``.
        trained_on: What the weights have seen, for judging a score on public images.
        seen: The datasets among that, by the name of their layout; for MedSAM as far as known.
        checksum: "sha256:..." or "md5:..." of the published file; None where nobody vouches for
            one: then the file is trusted on first use, recorded, and compared from then on.
        accept: Whether a user has to accept the terms by name before the file is fetched or used.
    """

    file: str
    urls: tuple[str, ...]
    bytes: int
    licence: str
    terms: str
    citation: str
    family: str
    trained_on: str
    seen: tuple[str, ...] = ()
    checksum: str | None = None
    accept: bool = False

    @property
    def size(self) -> str:
        """The size in words: "375 MB"."""
        return f"{self.bytes / 1e6:.0f} MB"


_APACHE = "Free use and redistribution with the licence text and a note of changes."
_SAM_FOLDER = "https://dl.fbaipublicfiles.com/segment_anything"
_MOBILE_SAM = "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM"


def _sam(file: str, size: int, digest: str) -> WeightsFile:
    return WeightsFile(
        file=file,
        urls=(f"{_SAM_FOLDER}/{file}",),
        bytes=size,
        licence="Apache-2.0",
        terms=_APACHE,
        citation="Kirillov et al., Segment Anything, ICCV 2023, arXiv 2304.02643",
        family="sam",
        trained_on="SA-1B: 11 million photographs; no medical images.",
        # Meta publishes the first digits of the MD5, in the file's name; this SHA-256 is pinned by
        # many independent projects.
        checksum=f"sha256:{digest}",
    )


# Lengths and digests as the published model cards have them, and many independent projects.
_SAM2 = {
    "tiny": (156_008_466, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
    "small": (184_416_285, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
    "base_plus": (323_606_802, "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
    "large": (898_083_611, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
}


def _sam2(size: str, length: int, digest: str) -> WeightsFile:
    file = f"sam2.1_hiera_{size}.pt"
    return WeightsFile(
        file=file,
        urls=(f"https://dl.fbaipublicfiles.com/segment_anything_2/092824/{file}",),
        bytes=length,
        licence="Apache-2.0",
        terms=_APACHE,
        citation="Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024, arXiv 2408.00714",
        family="medsam2",
        trained_on="SA-V: 51,000 natural videos, and SA-1B; no medical images. Frame 1024.",
        checksum=f"sha256:{digest}",
    )


def _resnet(layers: int, size: int, digest: str) -> WeightsFile:
    file = f"resnet{layers}-{digest[:8]}.pth"
    return WeightsFile(
        file=file,
        urls=(f"https://download.pytorch.org/models/{file}",),
        bytes=size,
        licence="BSD-3-Clause",
        terms="Free use and redistribution with the licence text. ImageNet's images are for "
        "research; the weights' authors set no such limit.",
        citation="He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv "
        "1512.03385",
        family="resnet",
        trained_on="ImageNet-1k: 1.3 million photographs; no medical images.",
        # torchvision publishes the first digits, in the file's name.
        checksum=f"sha256:{digest}",
    )


WEIGHTS: Registry[WeightsFile] = Registry(
    "weights file",
    {
        "r50_vit_b_16": WeightsFile(
            file="R50+ViT-B_16.npz",
            urls=("https://storage.googleapis.com/vit_models/imagenet21k/R50%2BViT-B_16.npz",),
            bytes=461_217_452,
            licence="Apache-2.0",
            terms=_APACHE,
            citation="Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image "
            "Recognition at Scale, ICLR 2021, arXiv 2010.11929",
            family="transunet",
            trained_on="ImageNet-21k: 14 million photographs; no medical images.",
        ),
        "resnet34": _resnet(
            34, 87_319_819, "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f"
        ),
        "resnet50": _resnet(
            50, 102_530_333, "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"
        ),
        "sam_vit_b": _sam(
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        "sam_vit_l": _sam(
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        "sam_vit_h": _sam(
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        "mobile_sam": WeightsFile(
            file="mobile_sam.pt",
            urls=(
                f"{_MOBILE_SAM}/master/weights/mobile_sam.pt",
                f"{_MOBILE_SAM}/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
            ),
            bytes=40_728_226,
            licence="Apache-2.0",
            terms=_APACHE,
            citation="Zhang et al., Faster Segment Anything: Towards Lightweight SAM for Mobile "
            "Applications, 2023, arXiv 2306.14289",
            family="mobile_sam",
            trained_on="A part of SA-1B (photographs), with SAM ViT-H as teacher; no medical "
            "images.",
            checksum="sha256:6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        "medsam_vit_b": WeightsFile(
            file="medsam_vit_b.pth",
            urls=("https://zenodo.org/records/10689643/files/medsam_vit_b.pth",),
            bytes=375_049_145,
            licence="Apache-2.0",
            terms=f"{_APACHE} The Zenodo record 10689643 is marked CC-BY-4.0: credit the authors.",
            citation="Ma et al., Segment Anything in Medical Images, Nature Communications 15, "
            "654, 2024, doi 10.1038/s41467-024-44824-z",
            family="sam",
            trained_on="1.57 million public medical image-mask pairs of ten modalities, among them "
            "breast lesions in ultrasound, most likely BUSI.",
            seen=("busi",),
            checksum="md5:3bb6db55bd0c9ca30b61248bca72f8d6",  # as Zenodo publishes it
        ),
        "medsam2": WeightsFile(
            file="MedSAM2_latest.pt",
            urls=("https://huggingface.co/wanglab/MedSAM2/resolve/main/MedSAM2_latest.pt",),
            bytes=156_040_129,
            licence="CC-BY-SA-4.0",
            terms="For research and education, as the authors' page says; credit them; what you make "
            "of the weights and pass on has to carry the same licence.",
            citation="Ma et al., MedSAM2: Segment Anything in 3D Medical Images and Videos, 2025, "
            "arXiv 2504.03600",
            family="medsam2",
            trained_on="455,000 public 3D image-mask pairs of CT, MRI and PET, and 76,000 frames of "
            "ultrasound and endoscopy videos, on top of SAM 2.1's natural videos.",
            checksum="sha256:c92743b99f00d078bf32a3afcc38aaa9faf1c1692dffe3eaa7a90938c1991060",
            accept=True,
        ),
        **{f"sam2_{size}": _sam2(size, *facts) for size, facts in _SAM2.items()},
        "ultrasam": WeightsFile(
            file="UltraSam.pth",
            urls=("https://s3.unistra.fr/camma_public/github/ultrasam/UltraSam.pth",),
            bytes=381_156_023,
            licence="CC-BY-NC-SA-4.0",
            terms="No commercial use; credit the authors; what you make of the weights and pass on "
            "has to carry the same licence.",
            citation="Meyer et al., UltraSam: a foundation model for ultrasound using large "
            "open-access segmentation datasets, International Journal of Computer Assisted "
            "Radiology and Surgery 21, 93-102, 2026, doi 10.1007/s11548-025-03517-8",
            family="ultrasam",
            trained_on="US-43d: 43 public ultrasound datasets with 282,000 images, among them "
            "BUSI, BUS-BRA (all but fold 1 of its partition), BUS (Dataset B), BUS_UC, BUS_UCLM, "
            "BrEaST and STU-Hospital.",
            seen=("busi", "busbra", "stu", "bus", "udiat", "bus_uc", "bus_uclm", "breast", "buid"),
            accept=True,
        ),
    },
)


def resnet_weights(layers: int, given: str | None) -> str | None:
    """Return the weights that a ResNet begins with; None: random ones.

    Args:
        layers: Its layers.
        given: A name, a path, or "random"; None: ImageNet's, where they are published.
    """
    if given is not None:
        return None if given == "random" else given
    return f"resnet{layers}" if f"resnet{layers}" in WEIGHTS else None


def registered(name_or_path: str | Path) -> str | None:
    """Return the row that a name, or the path of its file in ``FOLDER``, stands for; else None."""
    text = str(name_or_path)
    if text in WEIGHTS and not isinstance(name_or_path, Path):
        return text
    path = Path(text)
    return next((name for name, row in WEIGHTS.items() if path == Path(FOLDER) / row.file), None)


def weights_path(name_or_path: str | Path) -> Path:
    """Return the path that a name of the table, or a path, stands for, there or not."""
    name = registered(name_or_path)
    return Path(name_or_path) if name is None else Path(FOLDER) / WEIGHTS[name].file


def absent_files(folder: str | Path = FOLDER) -> list[str]:
    """Return the files of the table that are not in the weights folder."""
    return [row.file for row in WEIGHTS.values() if not (Path(folder) / row.file).is_file()]


def name_of_file(file: str) -> str | None:
    """Return the row whose file has this name."""
    return next((name for name, row in WEIGHTS.items() if row.file == file), None)


def to_be_fetched(name_or_path: str | Path) -> bool:
    """Whether a name or a path stands for a file of the table that is not there yet."""
    return registered(name_or_path) is not None and not weights_path(name_or_path).is_file()


def planned_file(name_or_path: str | None) -> str | None:
    """Return the path of a file that is there or will be fetched; None: no file, or an absent one."""
    if name_or_path is None:
        return None
    path = weights_path(name_or_path)
    return str(path) if path.is_file() or registered(name_or_path) else None


def planned_files(names: Iterable[str]) -> list[str]:
    """Return those of several; see ``planned_file``."""
    return [path for name in names if (path := planned_file(name)) is not None]


def unaccepted_terms(name_or_path: str | Path, accepted: Collection[str]) -> str | None:
    """Return what a user has to accept before weights are used; None if there is nothing.

    Args:
        name_or_path: A row of ``WEIGHTS``, or a path: a copy of a published file has its terms.
        accepted: The rows whose terms were accepted.
    """
    name = registered(name_or_path) or name_of_file(Path(name_or_path).name)
    if name is None or not WEIGHTS[name].accept or name in accepted:
        return None
    return terms_to_accept(name, WEIGHTS[name])


def terms_to_accept(name: str, row: WeightsFile) -> str:
    """Return the terms of weights, and where to say that they are accepted."""
    return (
        f"weights '{name}' come under {row.licence}: {row.terms} If you accept that, say so: "
        f"`weights: {{accept: [{name}]}}` in the study's config, `--accept {name}` on the command "
        "line."
    )


def how_to_get(name: str, row: WeightsFile, target: Path) -> str:
    """Return the words that tell how a file comes to where it is looked for."""
    folder = "" if target.parent == Path(FOLDER) else f" --folder {target.parent}"
    accept = f" --accept {name}" if row.accept else ""
    return (
        f"Run `ultrarefiner fetch {name}{accept}{folder}` where there is internet and this folder "
        f"({Path.cwd()}) is seen, such as a cluster's login node; or download "
        f"{' or '.join(row.urls)} ({row.size}, {row.licence}) and save it as {target.absolute()}"
    )


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or bool(Path(text).suffix)


def mistaken(name_or_path: str) -> str | None:
    """Return what keeps a text of the config from being weights, before any file is looked for.

    A path to a file that is not there is no mistake yet.
    """
    if registered(name_or_path) or Path(name_or_path).is_file():
        return None
    if Path(name_or_path).is_dir():
        return f"{name_or_path} is a folder, not a file; name the weights file in it"
    if _looks_like_path(name_or_path):
        return None
    return f"{unknown_name('weights', name_or_path, WEIGHTS)} For a file of your own give its path."


def _absent(name: str, target: Path) -> WeightsError:
    return WeightsError(
        f"weights '{name}' are absent: {target} is not there. "
        f"{how_to_get(name, WEIGHTS[name], target)}; or give the path of a copy in place of the "
        f"name '{name}'."
    )


def locate_weights(name_or_path: str | Path, folder: str | Path = FOLDER) -> Path:
    """Return the weights file that a name of the table, or a path, stands for.

    Args:
        name_or_path: A row of ``WEIGHTS``, looked up in ``folder``; anything with a separator or
            a suffix, or an existing file, is taken as a path.
        folder: The weights folder.

    Raises:
        WeightsError: Unknown name (with the nearest known one), no such file (with the address to
            download it from and the place to put it), or a file of another size than the published
            one.
    """
    text = str(name_or_path)
    if text in WEIGHTS and not isinstance(name_or_path, Path):
        target = Path(folder) / WEIGHTS[text].file
        if not target.is_file():
            raise _absent(text, target)
        _check_size(text, target)
        return target
    path = Path(text)
    if path.is_file():
        return path
    if not _looks_like_path(text) and not isinstance(name_or_path, Path):
        raise WeightsError(mistaken(text))
    known = name_of_file(path.name)
    if known is not None:
        raise _absent(known, path)
    what = "is a folder, not a file" if path.is_dir() else "no such weights file"
    raise WeightsError(
        f"{path}: {what}. Give the path of a weights file, or one of the known names: "
        f"{', '.join(sorted(WEIGHTS))}."
    )


def _check_size(name: str, target: Path) -> None:
    row, found = WEIGHTS[name], target.stat().st_size
    if found == row.bytes:
        return
    raise WeightsError(
        f"{target} has {found} bytes, the published file {row.bytes}: cut off, or another file. "
        f"Delete it; {fetched_anew(name)}"
    )


def fetched_anew(name: str) -> str:
    """Return the words that tell what happens after a wrong file was deleted."""
    return (
        f"the next run, or `ultrarefiner fetch {name}`, fetches it anew. A file of your own needs "
        "a place of its own: give its path instead of the name."
    )


def weights_name(name_or_path: str | Path) -> str:
    """Return a name of lower-case letters, digits and underscores for a weights file.

    A name of ``WEIGHTS`` stays. A path becomes its stem and eight digits of the path's hash, so
    that two files called ``model.pth`` never share a folder of embeddings.
    """
    text = str(name_or_path)
    if text in WEIGHTS and not isinstance(name_or_path, Path):
        return text
    path = Path(text)
    stem = re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_")
    digest = sha256(path.as_posix().encode()).hexdigest()[:8]
    return f"{stem or 'weights'}_{digest}"
