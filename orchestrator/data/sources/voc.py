"""Pascal VOC: pictures with boxes around objects, in `JPEGImages`, `Annotations/*.xml` and `ImageSets/Main/*.txt`.

`train.txt`, `val.txt` and `test.txt` list the pictures of each split, without suffix; `trainval.txt` is read where
there is no `train.txt`, and without `test.txt` the validation split is what a model is tested on.

VOC counts pixels from 1, and a box includes its last ones: xmin=1, xmax=W is the whole width. So the box's left is
(xmin - 1) / W and its right xmax / W. A box refers to all of the picture, which is therefore stretched, never cropped,
to the square that a model reads. Objects marked as difficult are left out, as VOC's own evaluation does.
"""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from pathlib import PurePosixPath

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, BoxesTarget, ImageFeature
from orchestrator.data.columns import BOX_NUMBERS, Array, Columns, Ragged
from orchestrator.data.manifest import Change, Source
from orchestrator.data.sources.classes import check_class_names
from orchestrator.data.sources.damaged import refuse_or_skip
from orchestrator.data.sources.files import Files
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.picture_files import (
    SPLIT_NAMES,
    SUFFIXES,
    cut_into_pieces,
    default_name,
    list_files,
    mixed,
    path_of,
    refuse_hostile,
    with_test_split,
)
from orchestrator.data.sources.pictures import (
    choose_form,
    look_at,
    look_at_some,
    look_for_damage,
    picture_column,
    read_picture,
)
from orchestrator.data.sources.prepared import Part, Prepared

_READ_THREADS = 16  # files of a bucket are waited for
_XML_BYTES = 2**19  # 1,700 objects in a picture; each element takes a hundred bytes once parsed
_LIST_BYTES = 2**26
_LISTS = ("train", "val", "trainval", "test")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Box:
    """An object: its class, and left, top, right and bottom as shares of the picture's sides."""

    name: str
    corners: tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """What an XML file says about its picture."""

    place: str
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Sample:
    """The files of a picture."""

    picture: str
    annotation: str


def read_voc(source: str, options: SourceOptions) -> Prepared:
    """Read pictures with boxes; they are stored as files, whatever their size."""
    only(options, "voc", "classes", "side", "damaged")
    files, sizes = list_files(source)
    splits, changes = list_scenes(files, sizes, options)
    annotations = {split: read_annotations(files, samples) for split, samples in splits.items()}
    classes = _classes(annotations, options, files.uri)
    pictures = [sample.picture for samples in splits.values() for sample in samples]
    looks = look_at_some(
        len(pictures),
        read=lambda row: read_picture(files, pictures[row]),
        where=lambda row: path_of(files, pictures[row]),
        can_skip=True,
    )
    feature = choose_form(looks, options.model_copy(update={"encoding": "file"}))
    return Prepared(
        name=default_name(files),
        features={"image": feature},
        target=BoxesTarget(classes=classes),
        splits={
            split: scene_part(files, samples, sizes, classes, feature, options) for split, samples in splits.items()
        },
        source=Source(format="voc", uri=source, changes=changes),
    )


def list_scenes(
    files: Files, sizes: Mapping[str, int], options: SourceOptions
) -> tuple[Mapping[str, Sequence[Sample]], tuple[Change, ...]]:
    """Return the samples of each split, without damaged pictures where the person says so; others are found later."""
    splits = _splits(files, sizes)
    if options.damaged != "skip":
        return splits, ()
    names = [sample.picture for samples in splits.values() for sample in samples]
    damage = look_for_damage(
        len(names), read=lambda row: read_picture(files, names[row]), where=lambda row: path_of(files, names[row])
    )
    whole, _, changes = refuse_or_skip(names, damage, options, place=files.uri, what="pictures")
    kept = set(whole)
    left = {split: [sample for sample in samples if sample.picture in kept] for split, samples in splits.items()}
    for split, samples in left.items():
        if not samples:
            raise ConfigError(f"split {split} of {files.uri} must hold a picture that can be read, got none. Add some.")
    return left, tuple(changes)


def parse_annotation(data: bytes, place: str) -> Annotation:
    """Return what an XML file says.

    Raises:
        ConfigError: if it is no XML, defines entities, or a box is empty or not within the picture.
    """
    root = _parse_xml(data, place)
    width, height = (_number(root, f"size/{side}", place) for side in ("width", "height"))
    if not (width >= 1 and height >= 1 and width.is_integer() and height.is_integer()):
        raise ConfigError(f"size in {place} must be whole numbers from 1 on, got {width:g} x {height:g}. Correct it.")
    objects = [
        (number, item) for number, item in enumerate(root.iterfind("object"), start=1) if not _is_difficult(item)
    ]
    boxes = tuple(_box(item, f"object {number} of {place}", width, height) for number, item in objects)
    return Annotation(place, int(width), int(height), boxes)


@dataclass(frozen=True)
class ScenePiece:
    """Some pictures and their boxes."""

    files: Files
    samples: tuple[Sample, ...]
    source_bytes: int
    classes: tuple[str, ...]
    feature: ImageFeature

    @property
    def rows(self) -> int:
        """Number of pictures."""
        return len(self.samples)

    def read(self) -> Columns:
        """Return the pictures and their boxes."""
        annotations = read_annotations(self.files, self.samples)
        pictures = picture_column(
            self.rows,
            read=lambda row: self._read_picture(self.samples[row].picture, annotations[row]),
            where=lambda row: path_of(self.files, self.samples[row].picture),
            feature=self.feature,
            can_skip=True,
        )
        boxes = [_rows(annotation.boxes, self.classes) for annotation in annotations]
        return {"image": pictures, TARGET: Ragged.of(boxes, dtype=np.float32, width=(BOX_NUMBERS,))}

    def _read_picture(self, name: str, annotation: Annotation) -> bytes:
        data, place = read_picture(self.files, name), path_of(self.files, name)
        look = look_at(data, place)
        if look.is_turned:
            raise ConfigError(
                f"{place} must lie as its pixels do, got an orientation in its EXIF data: whether the boxes follow it "
                "is not known. Turn the pixels, and remove it."
            )
        if (look.width, look.height) != (annotation.width, annotation.height):
            raise ConfigError(
                f"{annotation.place} must have the size of its picture, {look.size}, got {annotation.width} x "
                f"{annotation.height}. Correct the boxes and the size."
            )
        return data


def scene_part(
    files: Files,
    samples: Sequence[Sample],
    sizes: Mapping[str, int],
    classes: tuple[str, ...],
    feature: ImageFeature,
    options: SourceOptions,
) -> Part:
    """Return some pictures in the order in which they are stored."""
    in_order = [samples[row] for row in mixed(len(samples), options)]
    bytes_of = [sizes[sample.picture] + sizes[sample.annotation] for sample in in_order]
    return Part(
        tuple(
            ScenePiece(files, tuple(in_order[run]), sum(bytes_of[run]), classes, feature)
            for run in cut_into_pieces(bytes_of)
        ),
        is_mixed=True,
    )


def _splits(files: Files, sizes: Mapping[str, int]) -> dict[str, list[Sample]]:
    """Return the samples of each split, as the lists say."""
    roots = sorted({path.parents[1] for path in map(PurePosixPath, sizes) if _is_annotation(path)})
    if len(roots) != 1:
        found = " and ".join(map(str, roots)) or "none"
        raise ConfigError(f"{files.uri} must hold one folder with Annotations/*.xml, got {found}. Give one of them.")
    lists = {name: str(roots[0] / "ImageSets" / "Main" / f"{name}.txt") for name in _LISTS}
    listed = {name: _listed(files, path) for name, path in lists.items() if path in sizes}
    splits = {
        SPLIT_NAMES.get(name.lower(), "train"): names for name, names in listed.items() if name.lower() != "trainval"
    }
    if "train" not in splits and "trainval" in listed:
        held_out = {stem for stems in splits.values() for stem in stems}
        splits["train"] = [stem for stem in listed["trainval"] if stem not in held_out]
    complete = with_test_split(splits)
    if not {"train", "test"} <= complete.keys():
        raise ConfigError(
            f"{files.uri} must list pictures in ImageSets/Main/train.txt, and in test.txt or val.txt, got "
            f"{', '.join(f'{name}.txt' for name in listed) or 'none of them'}. Write what is missing."
        )
    _refuse_copies(complete, files.uri)
    pictures = _by_stem(files, [path for path in map(PurePosixPath, sizes) if path.parent == roots[0] / "JPEGImages"])
    return {
        split: [_sample(stem, pictures, roots[0], sizes, files.uri) for stem in stems]
        for split, stems in complete.items()
    }


def _is_annotation(path: PurePosixPath) -> bool:
    return path.parent.name == "Annotations" and path.suffix == ".xml"


def _listed(files: Files, name: str) -> list[str]:
    place = path_of(files, name)
    try:
        lines = files.read(name, most_bytes=_LIST_BYTES).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} must be text in UTF-8, got {error}. Convert it.") from error
    stems = [line.strip() for line in lines if line.strip()]
    for stem in stems:
        refuse_hostile(stem, place)
    return stems


def _refuse_copies(splits: Mapping[str, Sequence[str]], place: str) -> None:
    counts = Counter(stem for stems in splits.values() for stem in stems)
    stem, count = counts.most_common(1)[0]
    if count > 1:
        lists = " and ".join(split for split, stems in splits.items() for found in stems if found == stem)
        raise ConfigError(f"{place} must list every picture once, got {stem} in {lists}. Remove one.")


def _by_stem(files: Files, paths: Iterable[PurePosixPath]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        if path.suffix.lower() in SUFFIXES and found.setdefault(path.stem, str(path)) != str(path):
            raise ConfigError(
                f"{files.uri} must hold one picture of each name, got {found[path.stem]} and {path}. Remove one."
            )
    return found


def _sample(
    stem: str, pictures: Mapping[str, str], root: PurePosixPath, sizes: Mapping[str, int], place: str
) -> Sample:
    annotation = str(root / "Annotations" / f"{stem}.xml")
    if stem not in pictures or annotation not in sizes:
        missing = f"{root / 'JPEGImages' / stem}.*" if stem not in pictures else annotation
        raise ConfigError(f"{place} must hold all that its lists name, got no {missing}. Add it, or remove the name.")
    return Sample(pictures[stem], annotation)


def read_annotations(files: Files, samples: Sequence[Sample]) -> list[Annotation]:
    """Read what is said about some pictures."""
    names = [sample.annotation for sample in samples]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(
            pool.map(
                lambda name: parse_annotation(files.read(name, most_bytes=_XML_BYTES), path_of(files, name)), names
            )
        )


def _classes(annotations: Mapping[str, Sequence[Annotation]], options: SourceOptions, place: str) -> tuple[str, ...]:
    """Return the classes of the training split, or those that the person names."""
    trained = {box.name for annotation in annotations["train"] for box in annotation.boxes}
    classes = options.classes or tuple(sorted(trained))
    check_class_names(classes, "option classes" if options.classes else place)
    untrained = [name for name in classes if name not in trained]
    if untrained:
        raise ConfigError(
            f"the training split of {place} must hold every class, got no object of {untrained[0]!r}. Add some, or "
            "leave the class out."
        )
    for annotation in (annotation for found in annotations.values() for annotation in found):
        for box in annotation.boxes:
            if box.name not in classes:
                raise ConfigError(
                    f"every object of {annotation.place} must be of a class among {', '.join(classes)}, got "
                    f"{box.name!r}. Correct it, or remove the object."
                )
    return classes


def _rows(boxes: Sequence[Box], classes: tuple[str, ...]) -> Array:
    rows = [(classes.index(box.name), *box.corners) for box in boxes]
    return np.array(rows, np.float32).reshape(-1, BOX_NUMBERS)


def _parse_xml(data: bytes, place: str) -> ET.Element:
    try:
        text = data.decode("utf-8-sig")  # other encodings could hide what is looked for
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ConfigError(
                f"{place} must be XML without a DOCTYPE, whose entities may grow or read files. Remove it."
            )
        return ET.fromstring(text)
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place} must be XML in UTF-8, got {error}. Write it anew.") from error


def _is_difficult(item: ET.Element) -> bool:
    return item.findtext("difficult", "0").strip() == "1"


def _box(item: ET.Element, place: str, width: float, height: float) -> Box:
    name = item.findtext("name", "").strip()
    left, top, right, bottom = (_number(item, f"bndbox/{corner}", place) for corner in _CORNERS)
    if not (1 <= left <= right <= width and 1 <= top <= bottom <= height):
        raise ConfigError(
            f"the box of {place} must have 1 <= xmin <= xmax <= {width:g} and 1 <= ymin <= ymax <= {height:g}, got "
            f"xmin={left:g}, ymin={top:g}, xmax={right:g}, ymax={bottom:g}. Correct it: pixels are counted from 1."
        )
    check_class_names([name], place)
    return Box(name, ((left - 1) / width, (top - 1) / height, right / width, bottom / height))


def _number(item: ET.Element, path: str, place: str) -> float:
    text = item.findtext(path, "").strip()
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise ConfigError(f"{path} of {place} must be a number, got {text!r}. Correct it.")
    return number
