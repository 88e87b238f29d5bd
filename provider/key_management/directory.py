"""Trust stores as folders of certificate files, or single files: `verificationCerts` of a Verifier.

Rules:
- The folder is the store, as notation has it: regular files only, each a certificate file by its name's ending, each
  readable whole. A link, a folder inside, another file, an empty folder: an error, because a certificate that somebody
  thinks is trusted, or thinks is gone, must not be a matter of luck.
- Every certificate may anchor trust (a CA, or self-signed; for time-stamping a self-signed CA), or the folder is an
  error.
- Everything wrong with a folder is told at once. A failed refresh keeps what was loaded before.
- A Kubernetes volume is read as what it stands for: its links are not links (folders.py).

What does not belong here: which store of a policy a folder serves (components.py).
Source: notaryproject/specifications, trust-store-trust-policy.md "Trust Store"; notation-go refuses links and folders
too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from provider.errors import ConfigurationError, Fault, Undecided
from provider.interfaces import KeyMaterial
from provider.key_management.folders import current_generation, locate_file, read_file, reason
from provider.key_management.material import material_of
from provider.notation.certificates import (
    Certificate,
    check_timestamp_trust_anchor,
    check_trust_anchor,
    parse_certificates,
)

MAX_FILES: Final = 1000  # of one folder; the CA bundle of a Linux distribution has 150 certificates
MAX_FILE_BYTES: Final = 1024 * 1024  # a bundle of 500 certificates
ENDINGS: Final = frozenset({".pem", ".crt", ".cer", ".der"})  # the specification's, and .der, which notation reads too


def read_trust_store(path: Path, *, timestamping: bool) -> tuple[Certificate, ...]:
    """Read a folder of certificate files, or one such file.

    Args:
        path: the folder or file; not a link.
        timestamping: the certificates are to anchor time-stamp authorities.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID, with a fault for every entry that is wrong.
    """
    faults: list[Fault] = []
    certificates: list[Certificate] = []
    try:
        files = tuple(_files(path, faults))
    except OSError as error:
        raise ConfigurationError("CERTIFICATE_INVALID", f"{path} cannot be read: {reason(error)}") from None
    for file in files:
        try:
            found = parse_certificates(read_file(file, max_bytes=MAX_FILE_BYTES, follow_links=False))
        except OSError as error:
            faults.append(_fault(path, file, f"cannot be read: {reason(error)}"))
            continue
        except ConfigurationError as error:
            faults.append(_fault(path, file, error.detail))
            continue
        certificates.extend(found)
        faults.extend(_fault(path, file, problem) for problem in _unfit(found, timestamping=timestamping))
    if not files and not faults:
        faults.append(Fault(str(path), "", "", "holds no certificate file"))
    if faults:
        raise ConfigurationError("CERTIFICATE_INVALID", str(faults[0]), faults=faults)
    return tuple(certificates)


class DirectoryKeyManagementProvider:
    """A KeyManagementProvider over a folder or file. It holds nothing before the first refresh.

    Args:
        name: for reports and logs; the path as the operator wrote it will do.
        path: see read_trust_store.
        timestamping: see read_trust_store.
    """

    def __init__(self, name: str, path: Path, *, timestamping: bool) -> None:
        self.name = name
        self._path = path
        self._timestamping = timestamping
        self._material: KeyMaterial | None = None

    def material(self) -> KeyMaterial:
        """What was loaded last.

        Raises:
            Undecided: KEYS_UNAVAILABLE, when nothing good was ever loaded.
        """
        if self._material is None:
            raise Undecided("KEYS_UNAVAILABLE", f"the certificates of {self.name} are not loaded")
        return self._material

    async def refresh(self) -> None:
        """Read the files again, in a thread; on failure what was loaded before stays.

        Raises:
            ConfigurationError: CERTIFICATE_INVALID.
        """
        certificates = await asyncio.to_thread(read_trust_store, self._path, timestamping=self._timestamping)
        self._material = material_of(certificates)


def _files(path: Path, faults: list[Fault]) -> Iterator[Path]:
    """The certificate files, in the order of their names; what is none becomes a fault."""
    path = locate_file(path)
    if path.is_symlink():
        faults.append(Fault(str(path), "", "", "is a symbolic link: name the folder or file itself"))
        return
    if not path.is_dir():
        yield path
        return
    entries = sorted(current_generation(path).iterdir())
    if len(entries) > MAX_FILES:
        faults.append(Fault(str(path), "", "", f"holds more than {MAX_FILES} files"))
        return
    for entry in entries:
        if entry.is_symlink():
            faults.append(_fault(path, entry, "is a symbolic link: put the file itself there"))
        elif entry.is_dir():
            faults.append(_fault(path, entry, "is a folder: a trust store has files only"))
        elif entry.suffix.lower() not in ENDINGS:
            faults.append(_fault(path, entry, f"is no certificate file by its name ({', '.join(sorted(ENDINGS))})"))
        else:
            yield entry


def _unfit(certificates: tuple[Certificate, ...], *, timestamping: bool) -> Iterator[str]:
    """Why certificates may not anchor trust."""
    check = check_timestamp_trust_anchor if timestamping else check_trust_anchor
    for certificate in certificates:
        try:
            check(certificate)
        except ConfigurationError as error:
            yield error.detail


def _fault(store: Path, entry: Path, message: str) -> Fault:
    return Fault(str(store), "", entry.name, message)
