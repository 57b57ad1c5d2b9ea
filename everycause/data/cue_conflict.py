"""Images whose shape and texture belong to different classes (cue conflict), and the 16 classes that they show.

    root/airplane/airplane1-bicycle2.png      the shape of an airplane, painted with the texture of a bicycle

The published set has 1,280 images of 224 pixels, made by style transfer, 80 of each shape. In 80 of them shape and
texture are of one class: they hold no conflict and are left out. A class of ImageNet belongs to one of the 16 classes
where WordNet says so: `MEMBERS` lists those that the authors' own mapping has among ImageNet-1k's.

Source: Geirhos et al., ImageNet-trained CNNs are biased towards texture, ICLR 2019 (arXiv 1811.12231), section 2.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from everycause.artifacts import fingerprint
from everycause.data.images import Framing, content_digest, decoded, image_files, read_files, squared
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.shapes import Int64

FILE_NAME = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")
"""Name of an image file without its ending: class and number of the shape, class and number of the texture."""
MEMBERS: dict[str, tuple[str, ...]] = {
    name: tuple(f"n{number}" for number in numbers.split())
    for name, numbers in {
        "airplane": "02690373",
        "bear": "02132136 02133161 02134084 02134418",
        "bicycle": "02835271 03792782",
        "bird": """
            01514859 01530575 01531178 01532829 01534433 01537544 01558993 01560419 01582220 01592084
            01601694 01614925 01616318 01622779 01795545 01796340 01797886 01798484 01817953 01818515
            01819313 01820546 01824575 01828970 01829413 01833805 01843065 01843383 01855032 01855672
            01860187 02002556 02002724 02006656 02007558 02009229 02009912 02011460 02013706 02017213
            02018207 02018795 02025239 02027492 02028035 02033041 02037110 02051845 02056570
        """,
        "boat": "02951358 03344393 03662601 04273569 04612504",
        "bottle": "02823428 03937543 03983396 04557648 04560804 04579145 04591713",
        "car": "02814533 03100240 04285008",
        "cat": "02123045 02123159 02123394 02123597 02124075 02125311",
        "chair": "02791124 03376595 04099969 04429376",
        "clock": "02708093 03196217 04548280",
        "dog": """
            02085782 02085936 02086079 02086240 02086646 02086910 02087046 02087394 02088094 02088238
            02088364 02088466 02088632 02089078 02089867 02089973 02090379 02090622 02090721 02091032
            02091134 02091244 02091467 02091635 02091831 02092002 02092339 02093256 02093428 02093647
            02093754 02093859 02093991 02094114 02094258 02094433 02095314 02095570 02095889 02096051
            02096294 02096437 02096585 02097047 02097130 02097209 02097298 02097474 02097658 02098105
            02098286 02099267 02099429 02099601 02099712 02099849 02100236 02100583 02100735 02100877
            02101006 02101388 02101556 02102040 02102177 02102318 02102480 02102973 02104029 02104365
            02105056 02105162 02105251 02105505 02105641 02105855 02106030 02106166 02106382 02106550
            02106662 02107142 02107312 02107574 02107683 02107908 02108000 02108422 02108551 02108915
            02109047 02109525 02109961 02110063 02110185 02110627 02110806 02110958 02111129 02111277
            02111500 02112018 02112350 02112706 02113023 02113624 02113712 02113799 02113978
        """,
        "elephant": "02504013 02504458",
        "keyboard": "03085013 04505470",
        "knife": "03041632",
        "oven": "04111531",
        "truck": "03345487 03417042 03770679 03796401 03930630 03977966 04461696 04467665",
    }.items()
}
"""Each of the 16 classes, in alphabetical order → WordNet ids of those of ImageNet's 1,000 classes that belong to it.
They are 207; a breed of dog that the published lists lack (Samoyed, for one) belongs to no class."""
CATEGORIES = tuple(MEMBERS)


class CueConflicts(NamedTuple):
    """Images of which the shape is of one class and the texture of another."""

    images: Split
    """The label is the class of the shape, a place in CATEGORIES."""
    textures: Int64[Tensor, "images"]
    """The class of the texture, a place in CATEGORIES."""
    files: tuple[Path, ...]
    """The file of each image."""


def cues_of(file: Path) -> tuple[int, int]:
    """The classes of shape and texture that the name of a file tells, as places in CATEGORIES.

    Raises:
        UserError: the name follows another pattern, or names a class that is none of the 16.
    """
    match = FILE_NAME.fullmatch(file.stem)
    if match is None:
        raise UserError(
            f"'{file}' does not say which shape and texture it shows: name it like airplane1-bicycle2.png (shape first)"
        )
    for name in match.groups():
        if name not in CATEGORIES:
            raise UserError(f"'{file}' names the class '{name}', which is none of the 16: {', '.join(CATEGORIES)}")
    shape, texture = (CATEGORIES.index(name) for name in match.groups())
    return shape, texture


def cue_conflicts(root: Path, image_size: int, framing: Framing | None, threads: int) -> CueConflicts:
    """The images in a folder whose shape and texture are of different classes, whole: they were made at 224 pixels.

    Args:
        root: Folder of the images, at any depth.
        image_size: Side of the square that the network sees, in pixels.
        framing: How the network wants photographs resized; their border is not cut off.
        threads: Number of threads that read images.

    Raises:
        UserError: the folder is missing or holds no conflict, or the name of a file does not tell the cues.
    """
    if not os.path.isdir(root):
        raise UserError(
            f"the folder '{root}' is missing: put the cue conflict images there (the folder "
            "stimuli/style-transfer-preprocessed-512 of github.com/rgeirhos/texture-vs-shape), or name it by --images"
        )
    cues = {file: cues_of(file) for file in image_files(root)}
    files = [file for file, (shape, texture) in cues.items() if shape != texture]
    if not files:
        raise UserError(f"'{root}' holds no image whose shape and texture are of different classes: name their folder")
    images = Split(
        name="cue_conflict",
        labels=torch.tensor([cues[file][0] for file in files]),
        class_names=CATEGORIES,
        image_size=image_size,
        read=lambda index: read_files(
            [files[number] for number in index],
            lambda file: squared(decoded(file), image_size, image_size, framing),  # the whole picture, not a crop of it
            threads,
        ),
        identity=fingerprint(f"cue conflict {image_size} {framing}", content_digest(files, root)),
    )
    return CueConflicts(images, torch.tensor([cues[file][1] for file in files]), tuple(files))
