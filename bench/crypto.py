"""C1, C2: processor time of one verification against the signature operations that it cannot do without.

Rules: in this process, without network or revocation. Cold means a process that has loaded its trust store and verified
images of other signers, but nothing of this one: before each verification every memory of provider.notation is emptied,
then filled by those two. Otherwise the chain is known and the image is new.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from bench.report import Figure, paired, ratio
from bench.workload import IDENTITY, Algorithm, Signer, image_manifest
from provider.demo import pki, signing
from provider.demo.signing import EnvelopeFormat
from provider.notation.certificates import Certificate, check_timestamp_trust_anchor, check_trust_anchor
from provider.notation.trust_policy import StoreType, TrustPolicyDocument
from provider.notation.verification import Outcome, TrustStores, verify
from provider.oci import Descriptor

Operation = Callable[[], object]


def forget(part: str = "") -> None:
    """Empty every memory of the core, or of one module of it."""
    for name, module in list(sys.modules.items()):
        if name.startswith(f"provider.notation{part}"):
            for value in vars(module).values():
                clear = getattr(value, "cache_clear", None)
                if clear is not None:
                    clear()


def _per_call(operations: Sequence[Operation], *, before: Operation | None = None) -> float:
    """Seconds of processor time per operation; what `before` does is not counted."""
    total = 0.0
    gc.disable()
    try:
        for operation in operations:
            if before is not None:
                before()
            began = time.process_time_ns()
            operation()
            total += time.process_time_ns() - began
    finally:
        gc.enable()
    return total / len(operations) / 1e9


class _Case:
    """One kind of signature, ready to be verified any number of times."""

    def __init__(self, algorithm: Algorithm, envelope: EnvelopeFormat, *, stamped: bool) -> None:
        self._signer = Signer.make(algorithm)
        self._format = envelope
        self._stamped = stamped
        stores = ["ca:signers", *(["tsa:clocks"] if stamped else [])]
        document = {
            "version": "1.0",
            "trustPolicies": [
                {
                    "name": "bench",
                    "registryScopes": ["*"],
                    "signatureVerification": {"level": "strict", "verifyTimestamp": "always"},
                    "trustStores": stores,
                    "trustedIdentities": [f"x509.subject: {IDENTITY}"],
                }
            ],
        }
        self._statement = TrustPolicyDocument.parse(json.dumps(document).encode()).select("bench.example/app")
        self._at = datetime.now(UTC)

    def envelopes(self, count: int) -> list[tuple[Descriptor, bytes]]:
        """Signatures of different images."""
        targets = [image_manifest(number)[1] for number in range(count)]
        return [(one, self._signer.sign(one, stamped=self._stamped, envelope=self._format)) for one in targets]

    def load_trust_store(self) -> None:
        """What loading the configuration does with the roots."""
        check_trust_anchor(Certificate.parse(pki.der(self._signer.leaf.root)))
        check_timestamp_trust_anchor(Certificate.parse(pki.der(self._signer.stamper.root)))

    def _anchors(self) -> TrustStores:
        return {
            (StoreType.CA, "signers"): (Certificate.parse(pki.der(self._signer.leaf.root)),),
            (StoreType.TSA, "clocks"): (Certificate.parse(pki.der(self._signer.stamper.root)),),
        }

    def verification(self, target: Descriptor, data: bytes) -> Operation:
        """Verify one signature; raises if it does not verify, because a refusal is cheaper."""
        anchors = self._anchors()

        def operation() -> None:
            inquiry = verify(
                data,
                self._format.value,
                target=target,
                statement=self._statement,
                trust_stores=anchors,
                required_metadata={},
                at=self._at,
            )
            try:
                next(inquiry)
            except StopIteration as end:
                outcome: Outcome = end.value
                if any(check.error is not None for check in outcome.checks):
                    raise AssertionError([str(check.error) for check in outcome.checks]) from None
            else:
                raise AssertionError("a verification without revocation sources asked for something")

        return operation

    def raw(self, *, chain: bool) -> Operation:
        """The signature operations of one verification: the envelope's, and with `chain` those of the certificates."""
        key = self._signer.leaf.key
        message = b"m" * 1024
        checks = [_check(key, message, pss=True)]
        if self._stamped:
            checks.append(_check(self._signer.stamper.key, message, pss=False))
        if chain:
            chains = [self._signer.leaf.chain, *([self._signer.stamper.chain] if self._stamped else [])]
            for leaf, middle, root in chains:
                checks.append(partial(leaf.verify_directly_issued_by, middle))
                checks.append(partial(middle.verify_directly_issued_by, root))
        return lambda: [check() for check in checks]


def _check(key: Any, message: bytes, *, pss: bool) -> Operation:
    """The bare verification of one signature value."""
    hash_ = signing.algorithm_of(key).hash
    public = key.public_key()
    if isinstance(key, rsa.RSAPrivateKey):
        scheme: Any = padding.PSS(padding.MGF1(hash_), hash_.digest_size) if pss else padding.PKCS1v15()
        signature = key.sign(message, scheme, hash_)
        return lambda: public.verify(signature, message, scheme, hash_)
    if pss:  # Notary envelopes carry r and s
        half = (key.key_size + 7) // 8
        octets = signing.raw_signature(key, message)
        return lambda: public.verify(
            encode_dss_signature(int.from_bytes(octets[:half], "big"), int.from_bytes(octets[half:], "big")),
            message,
            ec.ECDSA(hash_),
        )
    der = key.sign(message, ec.ECDSA(hashes.SHA256()))
    return lambda: public.verify(der, message, ec.ECDSA(hashes.SHA256()))


def _become_new() -> None:
    forget(".envelope")
    forget(".timestamp")


def _become_cold(case: _Case, verify_another: Operation) -> None:
    forget()
    case.load_trust_store()
    verify_another()


def measure(*, rounds: int, count: int, full: bool) -> Iterator[Figure]:
    """C1 and C2 for the kinds of signatures that there are."""
    kinds: list[tuple[Algorithm, EnvelopeFormat, bool]] = [
        ("rsa3072", EnvelopeFormat.JWS, False),
        ("p256", EnvelopeFormat.COSE, False),
    ]
    if full:
        kinds += [
            ("rsa3072", EnvelopeFormat.COSE, False),
            ("p256", EnvelopeFormat.JWS, False),
            ("p384", EnvelopeFormat.JWS, False),
            ("rsa3072", EnvelopeFormat.COSE, True),
            ("p256", EnvelopeFormat.JWS, True),
        ]
    for algorithm, envelope, stamped in kinds:
        case, other = (_Case(algorithm, envelope, stamped=stamped) for _ in range(2))
        name = f"{algorithm} {envelope.name}{' + time-stamp' if stamped else ''}"
        operations = [case.verification(*one) for one in case.envelopes(count)]
        cold, warm = [case.raw(chain=True)] * count, [case.raw(chain=False)] * count
        before = partial(_become_cold, case, other.verification(*other.envelopes(1)[0]))
        yield ratio(
            "C1",
            f"cold verification, {name}",
            paired(rounds, partial(_per_call, operations, before=before), partial(_per_call, cold)),
            target=2.5,
            reference="of raw signature operations",
        )
        operations[0]()
        yield ratio(
            "C2",
            f"verification, chain known, {name}",
            paired(rounds, partial(_per_call, operations, before=_become_new), partial(_per_call, warm)),
            target=1.6,
            reference="of raw signature operations",
        )
        for operation in operations:
            operation()
        yield ratio(
            "C2",
            f"verification again of a signature that was verified, {name}",
            paired(rounds, partial(_per_call, operations), partial(_per_call, warm)),
            target=1.5,
            reference="of raw signature operations",
        )
