"""MosaicML Streaming, WebDataset and litdata, as their documentation recommends; runs in their own environment.

    python -P streaming_peers.py write TASK RECORDS     write the samples of a file of records in the peer's format
    python -P streaming_peers.py TASK                   read them; see `streaming_timing.run`

All of them hold a sample as (bytes, number) and make batches with one copy, the fastest form that each of them has.
`-P` keeps this folder off the path, where `streaming.py` would hide MosaicML's package.
"""

import json
import posixpath
import random
import sys
import tarfile
from collections.abc import Iterator
from functools import cache, partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import torch
from torch.utils.data import DataLoader

from tests.benchmarks.streaming_timing import Batch, Passes, Task, decode, run

CHUNK_BYTES = 64 * 2**20
BUFFER_ROWS = 5000
"""WebDataset's buffer; its documentation uses 1000 to 5000."""


def mosaic(task: Task) -> Passes:
    """MosaicML Streaming with its default shuffle and a local cache."""
    streaming = import_mosaic()
    dataset = streaming.StreamingDataset(
        remote=_url(task, _folder(task)),
        local=task.folder,
        shuffle=True,
        batch_size=task.batch_size,
        num_canonical_nodes=1,
    )
    return _loaded(DataLoader, dataset, task)


def litdata(task: Task) -> Passes:
    """litdata's StreamingDataset and StreamingDataLoader with shuffle and a local cache.

    Options: `window` of a chunk's samples that are shuffled among each other, and `batch_decode`, how many are read
    together. Its defaults, both "auto", mean 256; "full" shuffles whole chunks, and is fastest with 0.
    """
    import litdata
    from litdata.streaming import downloader

    # Its fast client refuses plain http, which a server on loopback speaks, and has no setting for it.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    dataset = litdata.StreamingDataset(
        _url(task, _folder(task)),
        cache_dir=task.folder,
        shuffle=True,
        item_shuffle_window=task.options["window"],
        batch_decode=task.options["batch_decode"],
        storage_options={"endpoint_url": task.store["endpoint_url"]},
    )
    return _loaded(litdata.StreamingDataLoader, dataset, task)


def webdataset(task: Task) -> Passes:
    """WebDataset over presigned addresses and curl, shards and a buffer shuffled."""
    import webdataset

    urls = [
        _s3(task).generate_presigned_url("get_object", Params={"Bucket": task.bucket, "Key": key}) for key in task.paths
    ]
    workers = task.options["workers"]
    # Stored order is no order here: the shards, then the samples of a buffer are shuffled anew in every pass.
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=random.randrange(2**31))
        .shuffle(BUFFER_ROWS)
        .to_tuple("bin", "id")
        .map(_from_tar)
        .batched(task.batch_size, collation_fn=partial(collate, task.kind))
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)
    return lambda _number: iter(loader)


def write(task: Task, records: Path) -> list[str]:
    """Write the samples in the peer's format below a temporary folder, upload them, and return their keys."""
    found = np.load(records)
    ends = np.cumsum(found["lengths"])
    data = memoryview(found["records"])
    samples = (
        (bytes(data[end - length : end]), number)
        for end, length, number in zip(ends.tolist(), found["lengths"].tolist(), found["targets"].tolist(), strict=True)
    )
    folder = Path(task.folder)
    {"mosaic": _write_mosaic, "litdata": _write_litdata, "webdataset": _write_tar}[task.loader](folder, samples)
    s3 = _s3(task)
    keys = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        keys.append(f"{_folder(task)}/{file.relative_to(folder)}")
        s3.upload_file(str(file), task.bucket, keys[-1])
    return keys


def collate(kind: str, samples: list[Any]) -> Batch:
    """Return the samples as one batch of tensors."""
    found = [(sample["data"], sample["target"]) if isinstance(sample, dict) else sample for sample in samples]
    targets = torch.tensor([target for _, target in found])
    if kind == "pictures":
        return {"image": torch.from_numpy(np.stack([decode(data) for data, _ in found])), "target": targets}
    joined = bytearray().join([data for data, _ in found])
    if kind == "images":
        return {"image": torch.frombuffer(joined, dtype=torch.uint8).view(-1, 3, 32, 32), "target": targets}
    columns = torch.frombuffer(joined, dtype=torch.int32).view(-1, 4).t().contiguous()
    return {**dict(zip(("user", "item", "context"), columns, strict=False)), "target": columns[3].view(torch.float32)}


@cache
def import_mosaic() -> Any:
    """Import MosaicML Streaming without torchvision's compiled part, which has no build for this torch.

    It only needs the package to be there, for classes that nothing here uses.
    """
    missing = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        missing.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import streaming

    return streaming


def prepare(task: Task) -> None:
    """Import what the loader imports, uncounted."""
    torch.set_num_threads(1)
    if task.loader == "mosaic":
        import_mosaic()
    else:
        __import__(task.loader)


def _loaded(loader: Any, dataset: Any, task: Task) -> Passes:
    workers = task.options["workers"]
    batches = loader(
        dataset,
        batch_size=task.batch_size,
        num_workers=workers,
        collate_fn=partial(collate, task.kind),
        prefetch_factor=4 if workers else None,
    )
    return lambda _number: iter(batches)


def _write_mosaic(folder: Path, samples: Iterator[tuple[bytes, int]]) -> None:
    streaming = import_mosaic()
    columns = {"data": "bytes", "target": "float64"}
    with streaming.MDSWriter(columns=columns, out=str(folder), size_limit=CHUNK_BYTES) as writer:
        for data, target in samples:
            writer.write({"data": data, "target": np.float64(target)})


def _write_litdata(folder: Path, samples: Iterator[tuple[bytes, int]]) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=CHUNK_BYTES)
    for index, (data, target) in enumerate(samples):
        writer[index] = {"data": data, "target": target}
    writer.done()
    writer.merge()


def _write_tar(folder: Path, samples: Iterator[tuple[bytes, int]]) -> None:
    """Write tar files with two members a sample, as WebDataset's own writer makes them."""
    numbered = enumerate(samples)
    for number, first in enumerate(numbered):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for index, (data, target) in chain([first], numbered):
                for name, content in ((f"{index:08}.bin", data), (f"{index:08}.id", str(target).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
                if tar.offset >= CHUNK_BYTES:
                    break


def _from_tar(sample: tuple[bytes, bytes]) -> tuple[bytes, float]:
    data, target = sample
    return data, float(target)


def _s3(task: Task) -> Any:
    return boto3.client("s3", endpoint_url=task.store["endpoint_url"])


def _url(task: Task, key: str) -> str:
    return f"s3://{task.bucket}/{key}"


def _folder(task: Task) -> str:
    return posixpath.commonpath(task.paths)


def main() -> None:
    """Write or read."""
    if sys.argv[1] == "write":
        print(json.dumps(write(Task(**json.loads(sys.argv[2])), Path(sys.argv[3]))))
    else:
        run({"mosaic": mosaic, "litdata": litdata, "webdataset": webdataset}, prepare)


if __name__ == "__main__":
    main()
