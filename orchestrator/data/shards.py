"""One Parquet shard: written with the byte range and SHA-256 of every row group, read back one row group at a time."""

import hashlib
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.manifest import RowGroup, Shard


def write_shard(table: pa.Table, *, path: str, rows_per_group: int) -> tuple[bytes, Shard]:
    """Return the table as a Parquet file, and its record for the manifest.

    Nothing is compressed: small pictures do not shrink, and a reader then only copies.
    """
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_group,
        compression="none",
        use_dictionary=False,
        write_statistics=False,  # the smallest and largest picture would bloat the footer
    )
    data = sink.getvalue()
    groups = _row_groups(memoryview(data), pq.read_metadata(pa.BufferReader(data)))
    footer_offset = groups[-1].offset + groups[-1].bytes
    shard = Shard(
        path=path,
        rows=table.num_rows,
        bytes=len(data),
        sha256=sha256(data),
        footer_sha256=sha256(memoryview(data)[footer_offset:]),
        row_groups=tuple(groups),
    )
    return data, shard


def read_footer(footer: Any) -> pq.FileMetaData:
    """Parse the bytes that follow a shard's last row group."""
    return pq.read_metadata(pa.BufferReader(footer))


def require_rows(footer: pq.FileMetaData, *, shard: Shard, index: int) -> None:
    """Refuse a row group of another number of rows than its record, or one that is compressed: we write none.

    Raises:
        ValueError: saying what it is.
    """
    if index >= footer.num_row_groups:
        raise ValueError(f"only {footer.num_row_groups} row groups")
    group, record = footer.row_group(index), shard.row_groups[index]
    if group.num_rows != record.rows or group.total_byte_size > 2 * record.bytes:
        raise ValueError(f"{group.num_rows} rows of {group.total_byte_size} bytes")


def read_row_group(data: Any, *, shard: Shard, index: int, footer: pq.FileMetaData) -> pa.Table:
    """Decode one row group from its own bytes; the rest of the shard is not needed."""
    part = _PartOfFile(data, offset=shard.row_groups[index].offset, file_bytes=shard.bytes)
    with pa.PythonFile(part, mode="r") as source:
        file = pq.ParquetFile(source, metadata=footer, pre_buffer=False)
        return file.read_row_group(index, use_threads=False)


def sha256(data: Any) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _row_groups(data: memoryview, metadata: pq.FileMetaData) -> list[RowGroup]:
    groups = []
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = [group.column(i) for i in range(group.num_columns)]
        start = min(column.data_page_offset for column in columns)
        stop = max(column.data_page_offset + column.total_compressed_size for column in columns)
        record = RowGroup(rows=group.num_rows, offset=start, bytes=stop - start, sha256=sha256(data[start:stop]))
        groups.append(record)
    return groups


class _PartOfFile:
    """A file of which only the bytes from `offset` on are there, as pyarrow reads one."""

    closed = False

    def __init__(self, data: Any, *, offset: int, file_bytes: int) -> None:
        self._data = memoryview(data)
        self._offset = offset
        self._file_bytes = file_bytes
        self._position = 0

    def read_buffer(self, size: int) -> memoryview:
        """Return the next bytes, without a copy."""
        start = self._position - self._offset
        assert start >= 0 and start + size <= len(self._data), "pyarrow reads only the row group's own bytes"
        self._position += size
        return self._data[start : start + size]

    read = read_buffer

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file_bytes}[whence]
        self._position = base + position
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
