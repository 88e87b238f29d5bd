"""The serving certificate and the trust in clients: TLS 1.3 only, changed while connections stay open.

Rules:
- Gatekeeper speaks TLS 1.3 or newer, so nothing older is offered. With client CA files a certificate is demanded.
- A change of the files never alters a context in use: OpenSSL can add client CAs to a context but not take one away. A
  new context is built from all files, and new connections get it; ServingTLS.current tells old connections from new.
- A bad update never replaces a good one: the last good context stays, the log and a metric say what is wrong.
- A serving certificate that nobody renews is told of before it expires, whoever was to renew it.
- The files are watched by content. Kubernetes swaps a symbolic link, and neither times nor file system events are
  reliable there.
- Certificates that clients send are judged by OpenSSL alone; nothing of them is parsed here (Gatekeeper's own CA has
  serial number 0, which stricter parsers refuse).

What does not belong here: making certificates, the Provider objects' caBundle, connections (listener.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog
from cryptography import x509

from provider.errors import ConfigurationError, Fault
from provider.telemetry import Metrics

_log = structlog.get_logger(__name__)

CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
MAX_FILE_BYTES: Final = 1024 * 1024  # a CA bundle of all public CAs has a quarter of this
POLL_SECONDS: Final = 5.0  # the kubelet itself takes up to 90 s to project a changed Secret
_READ_ATTEMPTS: Final = 3  # readings of the files until two in a row agree
_HANDSHAKE_LOG_SECONDS: Final = 10.0  # at most one line in this time for each reason
EXPIRY_NOTICE: Final = timedelta(days=7)  # or a sixth of the lifetime; renewing begins with a third of it left
EXPIRY_REPEAT: Final = timedelta(hours=1)  # how often an end that comes near is told again

_PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
_PEM_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"

# OpenSSL's names for what went wrong -> a metric label, and what a person should know.
_HANDSHAKE_REASONS: Final[dict[str, tuple[str, str]]] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": ("no_client_certificate", "the caller sent no client certificate"),
    "CERTIFICATE_VERIFY_FAILED": ("client_untrusted", "the caller's certificate does not lead to a client CA file"),
    "UNSUPPORTED_PROTOCOL": ("old_tls", "the caller does not speak TLS 1.3"),
    "HTTP_REQUEST": ("not_tls", "the caller does not speak TLS"),
    "WRONG_VERSION_NUMBER": ("not_tls", "the caller does not speak TLS"),
    "TLSV1_ALERT_UNKNOWN_CA": ("server_untrusted", "the caller does not trust us: see caBundle of the Provider"),
    "SSLV3_ALERT_BAD_CERTIFICATE": ("server_untrusted", "the caller does not trust us: see caBundle of the Provider"),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ("server_untrusted", "the serving certificate has expired"),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": ("server_untrusted", "the caller refuses the serving certificate"),
}
_OTHER_REASON: Final = ("other", "the handshake failed")


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Where the PEM files are.

    Attributes:
        certificate: serving certificate, then its intermediates.
        key: its private key, not encrypted.
        client_cas: CA certificates of callers; none means that callers need no certificate.
        optional_client_cas: the same, but a file may be missing at the start: an optional volume of a pod. Once one was
            there it has to stay; its loss is a fault, and never an end of asking for certificates.
    """

    certificate: Path
    key: Path
    client_cas: tuple[Path, ...] = ()
    optional_client_cas: tuple[Path, ...] = ()

    @classmethod
    def in_folder(
        cls, folder: Path, *, client_cas: Iterable[Path] = (), optional_client_cas: Iterable[Path] = ()
    ) -> TLSFiles:
        """The files tls.crt and tls.key of a folder, as a Secret of type kubernetes.io/tls is mounted."""
        return cls(folder / CERTIFICATE_FILE, folder / KEY_FILE, tuple(client_cas), tuple(optional_client_cas))

    def demanded(self, before: Iterable[Path]) -> TLSFiles:
        """These files with every optional CA demanded that is there, or was there before; and no optional ones."""
        present = (path for path in self.optional_client_cas if path in before or path.exists())
        return TLSFiles(self.certificate, self.key, (*self.client_cas, *present))

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that are demanded."""
        return (self.certificate, self.key, *self.client_cas)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What one reading of the files gave."""

    fingerprint: bytes
    context: ssl.SSLContext
    not_before: datetime
    not_after: datetime
    client_cas: tuple[Path, ...]


def utc_now() -> datetime:
    """The time by which the end of a serving certificate comes near."""
    return datetime.now(UTC)


class ServingTLS:
    """The TLS state of a listener.

    Args:
        files: read at once.
        metrics: where reloads and failed handshakes are counted.
        clock: aware, UTC.

    Attributes:
        context: to be given to the listener once; it delegates every new connection to the current state.

    Raises:
        ConfigurationError: TLS_INVALID, naming the file and the remedy.
    """

    def __init__(self, files: TLSFiles, *, metrics: Metrics, clock: Callable[[], datetime] = utc_now) -> None:
        self._files = files
        self._metrics = metrics
        self._clock = clock
        self._told_at: datetime | None = None  # of the coming end
        self._handshakes = _HandshakeLog(metrics)
        self._fault: str | None = None
        self._loaded = _load(files, self._handshakes, None)
        self._metrics.tls_not_after.set(self._loaded.not_after.timestamp())
        self.context: ssl.SSLContext = _DelegatingContext(self)

    @property
    def current(self) -> ssl.SSLContext:
        """The context that connections beginning now get; compared by identity."""
        return self._loaded.context

    @property
    def demands_client_certificate(self) -> bool:
        """Whether callers without a certificate of a client CA are refused."""
        return bool(self._loaded.client_cas)

    @property
    def not_after(self) -> datetime:
        """When the serving certificate expires (aware, UTC)."""
        return self._loaded.not_after

    @property
    def fault(self) -> str | None:
        """What is wrong with the files as they are now, None when nothing is."""
        return self._fault

    def reload(self) -> bool:
        """Read the files again, and serve with them if they changed and are good.

        Returns:
            Whether something changed.

        Raises:
            ConfigurationError: TLS_INVALID; what was loaded before stays in use.
        """
        return self._adopt(_load(self._files, self._handshakes, self._loaded))

    async def watch(self, interval_seconds: float = POLL_SECONDS) -> None:
        """Reload whenever the files change, until cancelled. Problems are logged once each and counted."""
        while True:
            self._tell_of_end(self._clock())
            await asyncio.sleep(interval_seconds)
            known = self._loaded
            try:
                loaded = await asyncio.to_thread(_load, self._files, self._handshakes, known)
            except ConfigurationError as error:
                if self._fault != error.detail:
                    self._fault = error.detail
                    self._metrics.tls_reloads.labels("failed").inc()
                    _log.error(
                        "TLS files cannot be used, the last good ones stay",
                        code=error.code,
                        errorReason=error.detail,
                        remediation=error.remediation,
                    )
                continue
            # What `reload` found meanwhile is not older than what this thread read.
            if self._loaded is known and self._adopt(loaded):
                _log.info("TLS files loaded", certificate=str(self._files.certificate), expires=str(loaded.not_after))

    def _tell_of_end(self, at: datetime) -> None:
        """Log that the serving certificate ends soon, or has ended, once in EXPIRY_REPEAT."""
        begin, end = self._loaded.not_before, self._loaded.not_after
        if end - at > min(EXPIRY_NOTICE, (end - begin) / 6):
            self._told_at = None
            return
        if self._told_at is not None and abs(at - self._told_at) < EXPIRY_REPEAT:
            return
        self._told_at = at
        _log.error(
            "serving certificate expires soon, or has expired",
            certificate=str(self._files.certificate),
            expires=str(end),
            remediation="Renew it; of a self-managed one, see which action of the certificate rotation fails.",
        )

    def _adopt(self, loaded: _Loaded) -> bool:
        self._fault = None
        if loaded is self._loaded:
            return False
        self._loaded = loaded
        self._told_at = None
        self._metrics.tls_reloads.labels("loaded").inc()
        self._metrics.tls_not_after.set(loaded.not_after.timestamp())
        return True


class _HandshakeLog:
    """Counts failed handshakes and says in the log, now and then, why they fail: Gatekeeper itself only says EOF."""

    def __init__(self, metrics: Metrics) -> None:
        self._failures = metrics.tls_handshake_failures
        self._quiet_until: dict[str, float] = {}

    def failed(self, error: ssl.SSLError) -> None:
        label, meaning = _HANDSHAKE_REASONS.get(error.reason or "", _OTHER_REASON)
        self._failures.labels(label).inc()
        now = time.monotonic()
        if now >= self._quiet_until.get(label, 0.0):
            self._quiet_until[label] = now + _HANDSHAKE_LOG_SECONDS
            detail = getattr(error, "verify_message", None)
            _log.warning("TLS handshake failed", reason=label, errorReason=meaning, openssl=error.reason, detail=detail)


class _ServerSide(ssl.SSLObject):
    """The server's side of one connection, which tells why its handshake failed."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError, ssl.SSLEOFError):
            raise
        except ssl.SSLError as error:
            if isinstance(self.context, _BuiltContext):
                self.context.handshakes.failed(error)
            raise


class _BuiltContext(ssl.SSLContext):
    """One unchanging set of certificate, key and client CAs."""

    handshakes: _HandshakeLog
    sslobject_class = _ServerSide


class _DelegatingContext(ssl.SSLContext):
    """The context that the event loop holds on to; every new connection is made with the current one.

    Only `wrap_bio` is delegated, which asyncio and uvloop both use. This context itself has no certificate, so that
    whatever else might use it fails to shake hands.
    """

    _serving: ServingTLS

    def __new__(cls, serving: ServingTLS) -> _DelegatingContext:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self.minimum_version = ssl.TLSVersion.TLSv1_3
        self._serving = serving
        return self

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self._serving.current.wrap_bio(*args, **kwargs)


def _load(files: TLSFiles, handshakes: _HandshakeLog, known: _Loaded | None) -> _Loaded:
    """Build a context from the files, or return `known` when it was made of the same.

    The files are read before and after: a certificate of before a swap of the mounted Secret and a key of after it
    must not meet.
    """
    files = files.demanded(known.client_cas if known else ())
    contents = _read_all(files)
    for _ in range(_READ_ATTEMPTS):
        fingerprint = _fingerprint(contents)
        if known is not None and known.fingerprint == fingerprint:
            return known
        fault: ConfigurationError | None = None
        try:
            context = _build_context(files, contents, handshakes)
            not_before, not_after = _validity(files.certificate, contents[files.certificate])
        except ConfigurationError as error:
            fault = error
        before, contents = contents, _read_all(files)
        if contents != before:
            continue
        if fault is not None:
            raise fault
        return _Loaded(fingerprint, context, not_before, not_after, files.client_cas)
    raise _invalid(files.certificate, "the files keep changing while they are read")


def _build_context(files: TLSFiles, contents: dict[Path, bytes], handshakes: _HandshakeLog) -> ssl.SSLContext:
    context = _BuiltContext(ssl.PROTOCOL_TLS_SERVER)
    context.handshakes = handshakes
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # Gatekeeper never resumes a session
    # A CA that is not self-signed may be an anchor too, as it may in Gatekeeper's and Ratify's Go.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_password)
    except _EncryptedKeyError:
        raise _invalid(
            files.key, "the private key is encrypted", remediation="Give the key without a passphrase."
        ) from None
    except ssl.SSLError as error:
        _raise_for_pair(files, error)
    except OSError as error:
        raise _unreadable(files.certificate, error) from None
    if files.client_cas:
        for path in files.client_cas:
            _trust_clients(context, path, contents[path])
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _EncryptedKeyError(Exception):
    """OpenSSL asked for a passphrase."""


def _refuse_password() -> NoReturn:
    raise _EncryptedKeyError  # without this OpenSSL would ask on the terminal and wait for ever


def _raise_for_pair(files: TLSFiles, error: ssl.SSLError) -> NoReturn:
    if error.reason == "KEY_VALUES_MISMATCH":
        raise _invalid(files.key, f"the private key does not belong to the certificate {files.certificate}") from None
    certificate = _read(files.certificate)
    whole = len(_PEM_CERTIFICATE.findall(certificate)) == certificate.count(_PEM_BEGIN) > 0
    culprit = files.key if whole else files.certificate
    raise _invalid(culprit, f"OpenSSL cannot use it: {error.reason or 'no PEM block found'}") from None


def _trust_clients(context: ssl.SSLContext, path: Path, content: bytes) -> None:
    """Add the CA certificates of one file. A block that is cut off is an error: half a bundle is not what was meant."""
    blocks = _PEM_CERTIFICATE.findall(content)
    if not blocks or len(blocks) != content.count(_PEM_BEGIN):
        raise _invalid(path, "the client CA file holds no certificate, or one that is cut off")
    for number, block in enumerate(blocks, start=1):
        try:
            context.load_verify_locations(cadata=ssl.PEM_cert_to_DER_cert(block.decode("ascii")))
        except (ssl.SSLError, ValueError):  # ValueError: base64, ASCII
            raise _invalid(path, f"certificate {number} of the client CA file cannot be parsed") from None


def _validity(path: Path, content: bytes) -> tuple[datetime, datetime]:
    try:
        certificate = x509.load_pem_x509_certificate(content)
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (ValueError, x509.InvalidVersion):
        raise _invalid(path, "the serving certificate cannot be parsed") from None


def _fingerprint(contents: dict[Path, bytes]) -> bytes:
    digest = hashlib.sha256()
    for content in contents.values():
        digest.update(hashlib.sha256(content).digest())
    return digest.digest()


def _read_all(files: TLSFiles) -> dict[Path, bytes]:
    return {path: _read(path) for path in files.paths}


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(content) > MAX_FILE_BYTES:
        raise _invalid(path, f"the file has more than {MAX_FILE_BYTES} bytes")
    return content


def _unreadable(path: Path, error: OSError) -> ConfigurationError:
    return _invalid(path, f"the file cannot be read: {error.strerror or type(error).__name__}")


def _invalid(path: Path, message: str, *, remediation: str | None = None) -> ConfigurationError:
    return ConfigurationError(
        "TLS_INVALID",
        f"{path}: {message}",
        faults=(Fault(source=str(path), resource="", path="", message=message),),
        remediation=remediation,
    )
