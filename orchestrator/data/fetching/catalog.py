"""Datasets that `data push NAME` fetches from where their authors published them, each file pinned by its SHA-256."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import MappingProxyType
from urllib.parse import urlsplit


@dataclass(frozen=True)
class OfficialFile:
    """One file to download."""

    urls: tuple[str, ...]
    """The same bytes at several places, tried in this order."""
    checksum: str | None
    """``sha256:HEX``; ``None`` only where the server packs the archive anew (see `OfficialDataset.content_sha256`)."""
    num_bytes: int | None = None

    @property
    def name(self) -> str:
        """File name, from the first URL."""
        return PurePosixPath(urlsplit(self.urls[0]).path).name


@dataclass(frozen=True)
class OfficialDataset:
    """Where a dataset is, how it is read, and what its authors ask for."""

    name: str
    title: str
    files: tuple[OfficialFile, ...]
    """One archive, or several files that belong into one folder."""
    format: str
    """One of `FORMATS` in `orchestrator/data/sources/formats.py`."""
    licence: str
    citation: str
    home_page: str
    inside: str = ""
    """Path of the source in the unpacked archive, or in the folder of the files; may hold ``*``. Empty: the folder."""
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """As for `parse_options`."""
    content_sha256: str | None = None
    """The SHA-256 of the source folder's files as lines ``SHA-256  NAME``, sorted: ``sha256sum * | sha256sum``."""


# ---- pictures

# Their splits are used as published, so that accuracies compare, even where a test picture is in train too.
_AS_PUBLISHED: Mapping[str, object] = MappingProxyType({"leakage": "keep"})

_CIFAR_TERMS = "no licence stated; made for research, cite Krizhevsky 2009"
_CIFAR_CITATION = "A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images. Technical report, 2009."
_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"

# The binary versions: the others are pickles. SHA-256 as TensorFlow Datasets pins it (url_checksums/cifar10.txt,
# cifar100.txt); the authors' page gives MD5 c32a1d4ab5d03f1284b67883e8d87530 and 03b5dce01913d631647c71ecec9e9cb8.
_CIFAR10 = OfficialDataset(
    name="cifar10",
    title="CIFAR-10: 60,000 photos of 10 classes, 32 × 32",
    files=(
        OfficialFile(
            urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            checksum="sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            num_bytes=170_052_171,
        ),
    ),
    format="cifar",
    inside="cifar-10-batches-bin",
    options=_AS_PUBLISHED,
    licence=_CIFAR_TERMS,
    citation=_CIFAR_CITATION,
    home_page=_CIFAR_PAGE,
)
_CIFAR100 = OfficialDataset(
    name="cifar100",
    title="CIFAR-100: 60,000 photos of 100 classes, 32 × 32",
    files=(
        OfficialFile(
            urls=("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
            checksum="sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            num_bytes=168_513_733,
        ),
    ),
    format="cifar",
    inside="cifar-100-binary",
    options=_AS_PUBLISHED,
    licence=_CIFAR_TERMS,
    citation=_CIFAR_CITATION,
    home_page=_CIFAR_PAGE,
)


def _idx_files(places: tuple[str, ...], pins: Mapping[str, tuple[int, str]]) -> tuple[OfficialFile, ...]:
    return tuple(
        OfficialFile(urls=tuple(place + name for place in places), checksum=f"sha256:{digest}", num_bytes=size)
        for name, (size, digest) in pins.items()
    )


# The original host refuses downloads; these are the mirrors that torchvision and TensorFlow Datasets use. SHA-256 as
# TensorFlow Datasets pins it (url_checksums/mnist.txt, fashion_mnist.txt).
_MNIST = OfficialDataset(
    name="mnist",
    title="MNIST: 70,000 handwritten digits, 28 × 28",
    files=_idx_files(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte.gz": (
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            "train-labels-idx1-ubyte.gz": (
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            "t10k-images-idx3-ubyte.gz": (
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            "t10k-labels-idx1-ubyte.gz": (
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        },
    ),
    format="idx",
    options=_AS_PUBLISHED,
    licence="CC BY-SA 3.0",
    citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-Based Learning Applied to Document Recognition. "
    "Proceedings of the IEEE, 1998.",
    home_page="http://yann.lecun.com/exdb/mnist/",
)
_FASHION_MNIST = OfficialDataset(
    name="fashion-mnist",
    title="Fashion-MNIST: 70,000 pictures of clothes, 28 × 28",
    files=_idx_files(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        {
            "train-images-idx3-ubyte.gz": (
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            "train-labels-idx1-ubyte.gz": (
                29_515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            "t10k-images-idx3-ubyte.gz": (
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            "t10k-labels-idx1-ubyte.gz": (
                5_148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        },
    ),
    format="idx",
    options=MappingProxyType(
        {
            **_AS_PUBLISHED,
            "classes": (
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
        }
    ),
    licence="MIT",
    citation="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
    "Algorithms. arXiv:1708.07747, 2017.",
    home_page="https://github.com/zalandoresearch/fashion-mnist",
)

# ---- ratings


def _movielens(size: str, *, title: str, inside: str, sha256: str, num_bytes: int) -> OfficialDataset:
    return OfficialDataset(
        name=f"movielens-{size}",
        title=title,
        files=(
            OfficialFile(
                urls=(f"https://files.grouplens.org/datasets/movielens/ml-{size}.zip",),
                checksum=f"sha256:{sha256}",
                num_bytes=num_bytes,
            ),
        ),
        format="ratings",
        inside=inside,
        licence="GroupLens terms: research use, no redistribution, no endorsement implied",
        citation="F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015.",
        home_page=f"https://grouplens.org/datasets/movielens/{size}/",
    )


# SHA-256 as TensorFlow Datasets pins it (url_checksums/movielens.txt); that of 10M is not there: it is the one that
# several public projects record together with GroupLens' own MD5 (ml-10m.zip.md5, ce571fd55effeba0271552578f2648bd).
_MOVIELENS = (
    _movielens(
        "100k",
        title="MovieLens 100k: 100,000 ratings of 1,682 films by 943 users",
        inside="ml-100k/u.data",
        sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        num_bytes=4_924_029,
    ),
    _movielens(
        "1m",
        title="MovieLens 1M: 1,000,209 ratings of about 3,900 films by 6,040 users",
        inside="ml-1m/ratings.dat",
        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        num_bytes=5_917_549,
    ),
    _movielens(
        "10m",
        title="MovieLens 10M: 10,000,054 ratings of 10,681 films by 71,567 users",
        inside="ml-10M100K/ratings.dat",
        sha256="813c411ccb6122564edfe752e7f80c4dcc5aa25fa94c93622f6877a7ba252862",
        num_bytes=65_566_137,
    ),
    _movielens(
        "20m",
        title="MovieLens 20M: 20,000,263 ratings of 27,278 films by 138,493 users",
        inside="ml-20m/ratings.csv",
        sha256="96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
        num_bytes=198_702_078,
    ),
)

# ---- sounds

# GitHub packs its archives anew from time to time, so the recordings are verified, not the archive. The commit and
# the archive of the same recordings from elsewhere give the same digest.
_FSDD = OfficialDataset(
    name="fsdd",
    title="Free Spoken Digit Dataset: 3,000 takes of 10 digits by 6 speakers, 8 kHz",
    files=(
        OfficialFile(
            urls=(
                "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/"
                "26eb9aaf76e81b692f806f9140c2d2777410d7a1.tar.gz",
            ),
            checksum=None,
        ),
    ),
    format="wav",
    inside="free-spoken-digit-dataset-*/recordings",
    options=MappingProxyType({"label": "name", "test": "*_[0-4].wav"}),  # the official split
    content_sha256="1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959",
    licence="CC BY-SA 4.0",
    citation="Z. Jackson and others: Jakobovski/free-spoken-digit-dataset, v1.0.8. Zenodo, 2018.",
    home_page="https://github.com/Jakobovski/free-spoken-digit-dataset",
)

# ---- series


def _ett(file: str, *, split_sizes: tuple[int, int, int], title: str, sha256: str, num_bytes: int) -> OfficialDataset:
    commit = "1d16c8f4f943005d613b5bc962e9eeb06058cf07"
    return OfficialDataset(
        name=file.lower(),
        title=title,
        files=(
            OfficialFile(
                urls=(f"https://raw.githubusercontent.com/zhouhaoyi/ETDataset/{commit}/ETT-small/{file}.csv",),
                checksum=f"sha256:{sha256}",
                num_bytes=num_bytes,
            ),
        ),
        format="series",
        inside=f"{file}.csv",
        options=MappingProxyType({"split_sizes": split_sizes}),  # 12, 4 and 4 months of 30 days, as published
        licence="CC BY-ND 4.0",
        citation="H. Zhou and others: Informer: Beyond Efficient Transformer for Long Sequence Time-Series "
        "Forecasting. AAAI 2021.",
        home_page="https://github.com/zhouhaoyi/ETDataset",
    )


_HOURLY, _QUARTER_HOURLY = (8640, 2880, 2880), (34560, 11520, 11520)

# SHA-256 of the authors' repository at this commit, computed from it (ETTh1, ETTh2); for all four, the one that the
# `tsdm` package pins (tsdm/datasets/ett.py).
_ETT = (
    _ett(
        "ETTh1",
        title="ETTh1: electricity transformer 1, 7 series, hourly",
        split_sizes=_HOURLY,
        sha256="f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
        num_bytes=2_589_657,
    ),
    _ett(
        "ETTh2",
        title="ETTh2: electricity transformer 2, 7 series, hourly",
        split_sizes=_HOURLY,
        sha256="a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
        num_bytes=2_417_960,
    ),
    _ett(
        "ETTm1",
        title="ETTm1: electricity transformer 1, 7 series, every 15 minutes",
        split_sizes=_QUARTER_HOURLY,
        sha256="6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",
        num_bytes=10_360_719,
    ),
    _ett(
        "ETTm2",
        title="ETTm2: electricity transformer 2, 7 series, every 15 minutes",
        split_sizes=_QUARTER_HOURLY,
        sha256="db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd",
        num_bytes=9_677_236,
    ),
)

OFFICIAL: Mapping[str, OfficialDataset] = {
    dataset.name: dataset for dataset in (_CIFAR10, _CIFAR100, _MNIST, _FASHION_MNIST, *_MOVIELENS, _FSDD, *_ETT)
}
