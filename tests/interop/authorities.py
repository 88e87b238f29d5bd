"""Keys, certificates, revocation answers and time-stamps, all made by the real `openssl` command.

Rules:
- Nothing here is made with the library that the product parses it with: openssl writes, the product reads.
- Every certificate has explicit dates (`openssl ca -startdate -enddate`), so one can live for seconds.
- The authorities are throw-away: keys lie unencrypted in the test's temporary folder.

What does not belong here: signatures (signers.py) and trust policies (judges.py).
"""

from __future__ import annotations

import contextlib
import http.server
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tests.interop import peers

# openssl genpkey's words for the six keys that the Notary Project's specification allows
KEY_TYPES: Final[dict[str, tuple[str, ...]]] = {
    "RSA-2048": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"),
    "RSA-3072": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"),
    "RSA-4096": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096"),
    "P-256": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "P-384": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "P-521": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"),
}

# Extension sections for the kinds of certificate, after the Notary Project's certificate requirements.
EXTENSIONS: Final = """
[root]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[intermediate]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[code_signing]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = codeSigning
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[server]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
[time_stamping]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[ocsp_responder]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = OCSPSigning
noCheck = ignored
"""

HOUR: Final = timedelta(hours=1)
CLOCK_FORMAT: Final = "%Y%m%d%H%M%SZ"


@dataclass(frozen=True)
class Identity:
    """A key and its certificate.

    Attributes:
        folder: where the files are.
        subject: the subject as a trust policy writes it.
        issuer: None for a self-signed certificate.
        not_after: end of validity, aware UTC.
    """

    folder: Path
    subject: str
    issuer: Authority | None
    not_after: datetime

    @property
    def key(self) -> Path:
        """PKCS #8, PEM, unencrypted."""
        return self.folder / "key.pem"

    @property
    def certificate(self) -> Path:
        """This certificate alone, PEM."""
        return self.folder / "certificate.pem"

    @property
    def chain(self) -> Path:
        """PEM, this certificate first and the root last."""
        return self.folder / "chain.pem"

    @property
    def root(self) -> Path:
        """The root's certificate, PEM."""
        return self.certificate if self.issuer is None else self.issuer.identity.root


@dataclass(frozen=True)
class Authority:
    """A certificate authority with its `openssl ca` data base."""

    identity: Identity
    _signers: dict[str, Identity] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        return self.identity.folder

    def issue(
        self,
        name: str,
        kind: str = "code_signing",
        *,
        key_type: str = "P-256",
        not_after: datetime | None = None,
        extensions: str = "",
    ) -> Identity:
        """Issue a certificate.

        Args:
            name: common name; also the folder's name.
            kind: section of EXTENSIONS.
            key_type: one of KEY_TYPES.
            not_after: end of validity, aware UTC; a day from now by default.
            extensions: further lines for the section, such as where to ask about revocation.
        """
        return _issue(self.folder.parent / name, name, kind, self, key_type, not_after, extensions)

    def once(self, key_type: str) -> Identity:
        """A signer with a key of a type, made at the first call: an RSA-4096 key takes a second."""
        if key_type not in self._signers:
            self._signers[key_type] = self.issue(f"signer-{key_type}", key_type=key_type)
        return self._signers[key_type]

    def intermediate(self, name: str) -> Authority:
        """An authority below this one."""
        return _authority(self.issue(name, "intermediate"))

    def revoke(self, identity: Identity, reason: str = "keyCompromise") -> None:
        """Enter a certificate in the data base as revoked; `crl` and the OCSP responder read it there."""
        peers.must([*_ca(self.folder), "-revoke", identity.certificate, "-crl_reason", reason], cwd=self.folder)

    def crl(self) -> bytes:
        """A fresh CRL, DER."""
        openssl = peers.find("openssl")
        pem = peers.must([*_ca(self.folder), "-gencrl", "-crldays", "1"], cwd=self.folder)
        return peers.must([openssl, "crl", "-outform", "DER"], stdin=pem)

    def ocsp_answer(self, request: bytes, responder: Identity) -> bytes:
        """The answer to an OCSP request, from the data base, signed by a delegated responder of this authority; DER."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            Path(scratch, "request.der").write_bytes(request)
            asked: peers.Command = [
                "-index",
                "index.txt",
                "-CA",
                "certificate.pem",
                "-reqin",
                Path(scratch, "request.der"),
            ]
            signer: peers.Command = ["-rsigner", responder.certificate, "-rkey", responder.key]
            answer: peers.Command = ["-respout", Path(scratch, "answer.der"), "-ndays", "1"]
            peers.must([peers.find("openssl"), "ocsp", *asked, *signer, *answer], cwd=self.folder)
            return Path(scratch, "answer.der").read_bytes()


def root_authority(folder: Path, name: str, *, key_type: str = "P-256") -> Authority:
    """A new root authority in a folder of its own below `folder`."""
    return _authority(_issue(folder / name, name, "root", None, key_type, None, ""))


def self_signed(folder: Path, name: str, *, key_type: str = "P-256") -> Identity:
    """A single certificate that signs code and itself, as small teams have it."""
    return _issue(folder / name, name, "code_signing", None, key_type, None, "")


def adopt(folder: Path, key: Path, certificate: Path) -> Identity:
    """A self-signed certificate and its key that another program made."""
    folder.mkdir(parents=True)
    (folder / "key.pem").write_bytes(key.read_bytes())
    for name in ("certificate.pem", "chain.pem"):
        (folder / name).write_bytes(certificate.read_bytes())
    return Identity(folder, "", None, datetime.max.replace(tzinfo=UTC))


def _ca(folder: Path) -> list[str | Path]:
    return [peers.find("openssl"), "ca", "-config", folder / "ca.cnf", "-batch", "-notext"]


def _issue(
    folder: Path,
    name: str,
    kind: str,
    issuer: Authority | None,
    key_type: str,
    not_after: datetime | None,
    extensions: str,
) -> Identity:
    """Make a key and a certificate for it, self-signed where there is no issuer."""
    folder.mkdir(parents=True)
    now = datetime.now(UTC).replace(microsecond=0)
    until = not_after or now + 24 * HOUR
    openssl = peers.find("openssl")
    peers.must([openssl, "genpkey", *KEY_TYPES[key_type], "-out", folder / "key.pem"])
    subject = f"/C=US/ST=WA/L=Seattle/O=Countersign interop/CN={name}"
    request: peers.Command = ["-key", folder / "key.pem", "-subj", subject, "-out", folder / "request.pem"]
    (folder / "request.cnf").write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    peers.must([openssl, "req", "-new", "-utf8", "-config", folder / "request.cnf", *request])

    home = folder if issuer is None else issuer.folder
    if issuer is None:
        _database(folder)
    sections = folder / "extensions.cnf"
    sections.write_text(EXTENSIONS.replace(f"[{kind}]", f"[{kind}]\n{extensions}"))
    signing: list[str | Path] = ["-selfsign", "-keyfile", folder / "key.pem"] if issuer is None else []
    dates = ["-startdate", (now - HOUR).strftime(CLOCK_FORMAT), "-enddate", until.strftime(CLOCK_FORMAT)]
    files: list[str | Path] = ["-in", folder / "request.pem", "-out", folder / "certificate.pem"]
    peers.must([*_ca(home), *signing, *dates, "-extfile", sections, "-extensions", kind, *files], cwd=home)
    parents = b"" if issuer is None else issuer.identity.chain.read_bytes()
    (folder / "chain.pem").write_bytes((folder / "certificate.pem").read_bytes() + parents)
    written = f"C=US, ST=WA, L=Seattle, O=Countersign interop, CN={name}"
    return Identity(folder, written, issuer, until)


def _database(folder: Path) -> None:
    """What `openssl ca` needs to issue from a folder that has (or will have) key.pem and certificate.pem."""
    (folder / "index.txt").touch()
    (folder / "ca.cnf").write_text(
        f"""
[ca]
default_ca = this
[this]
dir = {folder}
database = $dir/index.txt
new_certs_dir = $dir
rand_serial = yes
unique_subject = no
default_md = sha256
string_mask = utf8only
certificate = $dir/certificate.pem
private_key = $dir/key.pem
policy = any
crl_extensions = crl
crlnumber = $dir/crlnumber
[any]
countryName = optional
stateOrProvinceName = optional
localityName = optional
organizationName = optional
commonName = supplied
[crl]
authorityKeyIdentifier = keyid
"""
    )
    (folder / "crlnumber").write_text("01\n")


def _authority(identity: Identity) -> Authority:
    if identity.issuer is not None:
        _database(identity.folder)
    return Authority(identity)


@dataclass(frozen=True)
class TimestampAuthority:
    """An RFC 3161 authority: `openssl ts -reply` behind HTTP POST on loopback.

    Attributes:
        url: where to ask.
        identity: the signer of the tokens.
    """

    url: str
    identity: Identity

    @property
    def root(self) -> Path:
        """What goes into a `tsa` trust store."""
        return self.identity.root


def timestamp_reply(identity: Identity, query: bytes) -> bytes:
    """The answer of a time-stamp authority to a query, DER. ESSCertIDv2 with SHA-256, as RFC 5816 wants it."""
    configuration = identity.folder / "tsa.cnf"
    intermediates = identity.folder / "intermediates.pem"
    with tempfile.TemporaryDirectory(dir=identity.folder) as scratch:
        (Path(scratch) / "query.tsq").write_bytes(query)
        (Path(scratch) / "serial").write_text(f"{int.from_bytes(os.urandom(8)) | 1:016X}\n")
        assert identity.issuer is not None
        intermediates.write_bytes(identity.issuer.identity.chain.read_bytes())
        configuration = Path(scratch) / "tsa.cnf"
        configuration.write_text(
            f"""
[tsa]
default_tsa = this
[this]
serial = {scratch}/serial
signer_cert = {identity.certificate}
certs = {intermediates}
signer_key = {identity.key}
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
clock_precision_digits = 0
ordering = no
tsa_name = no
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""
        )
        reply: list[str | Path] = ["-queryfile", Path(scratch, "query.tsq"), "-out", Path(scratch, "reply.tsr")]
        peers.must([peers.find("openssl"), "ts", "-reply", "-config", configuration, *reply])
        return Path(scratch, "reply.tsr").read_bytes()


Handler = Callable[[str, str, bytes], tuple[int, str, bytes]]


@contextlib.contextmanager
def http_service(handle: Handler) -> Iterator[str]:
    """Serve a function over HTTP on a free loopback port; gives `http://127.0.0.1:<port>`.

    Args:
        handle: (method, path, body) -> (status, content type, body).
    """

    class Requests(http.server.BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content_type, answer = handle(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = _serve  # noqa: N815 - http.server looks these names up
        do_POST = _serve  # noqa: N815 - likewise

        def log_message(self, *_: object) -> None:
            """Quiet: pytest shows a failure's own words."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Requests) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def timestamp_authority(identity: Identity) -> Iterator[TimestampAuthority]:
    """Run a time-stamp authority for the time of a `with` block."""

    def handle(method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        if method != "POST":
            return 405, "text/plain", b"POST a time-stamp query"
        return 200, "application/timestamp-reply", timestamp_reply(identity, body)

    with http_service(handle) as url:
        yield TimestampAuthority(f"{url}/", identity)
