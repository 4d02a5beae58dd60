"""Unpacks archives without letting them write elsewhere or fill the disk."""

import gzip
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Self

from cluster.errors import ConfigError
from cluster.machine.disk import naming_disk
from cluster.machine.files import MOST_RATIO, most_unpacked_bytes
from orchestrator.data.fetching.disk import alone
from orchestrator.data.fetching.http import CHUNK_BYTES

_MOST_ENTRIES = 5_000_000  # more than ImageNet has; each costs an inode
_MOST_HEADER_BYTES = 2**16  # of a tar's member: a path has at most 4,096, and attributes come to a few hundred
_MOST_GLOBAL_HEADERS = 1000
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)


# ---- archives


def is_archive(name: str) -> bool:
    """Return whether a file of this name is unpacked before it is read."""
    return name.endswith((*_TARS, ".zip", ".gz"))


def extract(archive: Path, *, to: Path) -> Path:
    """Unpack an archive into the folder `to`, all or nothing, unless that is done already.

    Raises:
        ConfigError: if it is damaged, or holds what could do harm: a path or a link that leads out of the folder,
            a device, or far more bytes than it should.
        DiskFullError: if the disk is full.
    """
    with alone(to):
        if to.exists():
            return to
        part = to.with_name(f".{to.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir()
        try:
            with naming_disk(part):
                _unpack(archive, part)
        except BaseException:
            shutil.rmtree(part)
            raise
        part.replace(to)
    return to


def _unpack(archive: Path, folder: Path) -> None:
    allowance = _Allowance(archive)
    try:
        if archive.name.endswith(".zip"):
            _unzip(archive, folder, allowance)
        elif archive.name.endswith(_TARS):
            _untar(archive, folder, allowance)
        else:
            _gunzip(archive, folder / archive.name.removesuffix(".gz"), allowance)
    except (*_DAMAGES, _HeaderError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{archive} must be a whole archive, got {reason}. Download it again.") from error
    except RecursionError:
        raise ConfigError(f"{archive} must be a whole archive, got headers of headers without end.") from None


def _unzip(archive: Path, folder: Path, allowance: "_Allowance") -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            _check_name(member.filename, archive)
            if member.flag_bits & 0x1:
                raise ConfigError(f"{archive} must not be encrypted, got {member.filename!r}. Unpack it by hand.")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ConfigError(f"{archive} must hold no links, got {member.filename!r}. Unpack it by hand.")
            allowance.spend(member.file_size)  # zipfile reads no more than this
            file.extract(member, folder)


def _untar(archive: Path, folder: Path, allowance: "_Allowance") -> None:
    with tarfile.open(archive, tarinfo=_TarMember) as file:
        for member in file:
            member.pax_headers = {}  # tarfile keeps all members until its end
            _check_global_headers(file, archive)
            _check_name(member.name, archive)
            if member.issym() or member.islnk():
                # Stricter than the filter below, which older Pythons let themselves be talked out of (CVE-2025-4517).
                _check_name(member.linkname, archive)
            allowance.spend(member.size)
            file.extract(member, folder, filter="data")


class _HeaderError(Exception):
    """A header is larger than any that means well; no error of tarfile's, which would try another compression."""


class _TarMember(tarfile.TarInfo):
    """A member whose headers are small: tarfile reads each of them into memory, as long as it says that it is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header's first block, before what it announces is read."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and member.size > _MOST_HEADER_BYTES:
            raise _HeaderError(f"a header of {member.size:,} bytes, more than {_MOST_HEADER_BYTES:,}")
        return member


def _check_global_headers(file: tarfile.TarFile, archive: Path) -> None:
    """Refuse headers for all members that grow with every one of them; each member gets a copy."""
    if len(file.pax_headers) > _MOST_GLOBAL_HEADERS:
        raise ConfigError(
            f"{archive} must have at most {_MOST_GLOBAL_HEADERS} headers for all members, got more. Do not trust it."
        )


def _gunzip(archive: Path, path: Path, allowance: "_Allowance") -> None:
    with gzip.open(archive) as source, path.open("wb") as target:
        while chunk := source.read(CHUNK_BYTES):
            allowance.spend(len(chunk), entries=0)
            target.write(chunk)


def _check_name(name: str, archive: Path) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        raise ConfigError(
            f"{archive} must hold relative paths without '..', got {name!r}. Do not trust it; or unpack it by hand."
        )


class _Allowance:
    """What an archive may still become; a bomb is refused before it fills the disk."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._most_bytes = self._bytes = most_unpacked_bytes(archive.stat().st_size)
        self._entries = _MOST_ENTRIES

    def spend(self, num_bytes: int, *, entries: int = 1) -> None:
        """Count bytes before they are written."""
        if num_bytes < 0:
            raise ConfigError(f"{self._archive} must be a whole archive, got a file of {num_bytes} bytes.")
        self._bytes -= num_bytes
        self._entries -= entries
        if self._bytes < 0 or self._entries < 0:
            raise ConfigError(
                f"{self._archive} must unpack to at most {self._most_bytes} bytes ({MOST_RATIO} times its size) in "
                f"{_MOST_ENTRIES} files, got more. Do not trust it; or unpack it by hand."
            )
