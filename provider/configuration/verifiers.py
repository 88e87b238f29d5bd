"""Parameters of Verifier resources, by type.

    notation: trustPolicyDoc, verificationCertStores {ca | tsa | signingAuthority: {<store>: [<key provider>]}}
              or {<store>: [<key provider>]}, which means ca; verificationCerts [<folder or file>]
              and ours: maxSignatureAttempts, userMetadata, revocation {allowPrivateAddresses, allowedHosts}

What does not belong here: whether the key providers named exist (consistency.py), the rules of trust policies
(notation/trust_policy.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BeforeValidator, Field, PlainValidator

from provider.configuration.sections import (
    AbsolutePath,
    Flaw,
    Host,
    Listed,
    Section,
    Text,
    cluster_only,
    describe,
    flaw,
    join,
    reject,
    step,
    suggest,
)
from provider.errors import ConfigurationError
from provider.notation.trust_policy import StoreType, TrustPolicyDocument
from provider.verifiers.notation import DEFAULT_MAX_ATTEMPTS

MAX_ATTEMPTS: Final = 1000  # signatures; each costs two requests
MAX_STORES: Final = 100  # trust stores of one verifier
MAX_STORE_PROVIDERS: Final = 100  # key providers of one trust store

_STORE_TYPES: Final = {store_type.value: store_type for store_type in StoreType}
_STORE_NAME: Final = re.compile(r"[a-zA-Z0-9_.-]+")  # trust-store-trust-policy.md "Trust Store"
_REFERENCE: Final = re.compile(r"(?:[a-z0-9-]{1,63}/)?[a-z0-9.-]{1,253}")  # [namespace/]name

TrustStoreKey = tuple[StoreType, str]


class TrustStoreEntry(NamedTuple):
    """A trust store as a manifest defines it: its key path in verificationCertStores, and its key providers."""

    path: str
    references: tuple[str, ...]


def _read_trust_policy(value: Any) -> TrustPolicyDocument:
    try:
        return TrustPolicyDocument.from_object(value)
    except ConfigurationError as error:
        reject([Flaw(fault.path, fault.message) for fault in error.faults] or [Flaw("", error.detail)])


def _read_trust_stores(value: Any) -> Mapping[TrustStoreKey, TrustStoreEntry]:
    """Both of Ratify's forms as one: key providers by type and name of the trust store."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise flaw(f"must be a mapping, found {describe(value)}")
    typed = {key for key, entry in value.items() if isinstance(entry, dict)}
    stores: dict[TrustStoreKey, TrustStoreEntry] = {}
    flaws: list[Flaw] = []
    if typed and typed != value.keys():
        flaws.append(Flaw("", "mixes types of trust stores with names of trust stores: use one form or the other"))
    for key, entry in value.items():
        if key in typed and key in _STORE_TYPES:
            for name, providers in entry.items():
                _add_store(stores, flaws, join(step(key), step(name)), (_STORE_TYPES[key], name), providers)
        elif key in typed:
            flaws.append(Flaw(step(key), f"is no type of trust store{suggest(key, _STORE_TYPES)}"))
        elif key in _STORE_TYPES:
            flaws.append(Flaw(step(key), f"must map names of trust stores to lists, found {describe(entry)}"))
        else:
            _add_store(stores, flaws, step(key), (StoreType.CA, key), entry)
    if len(stores) > MAX_STORES:
        flaws.append(Flaw("", f"must have at most {MAX_STORES} trust stores, found {len(stores)}"))
    if flaws:
        reject(flaws)
    return stores


def _add_store(
    stores: dict[TrustStoreKey, TrustStoreEntry], flaws: list[Flaw], path: str, store: TrustStoreKey, entry: Any
) -> None:
    if _STORE_NAME.fullmatch(store[1]) is None or store[1] in (".", ".."):
        flaws.append(Flaw(path, "is no name of a trust store: letters, digits, '_', '.' and '-'"))
    if not isinstance(entry, list):
        flaws.append(Flaw(path, f"must be a list of key management providers, found {describe(entry)}"))
        return
    if not 0 < len(entry) <= MAX_STORE_PROVIDERS:
        flaws.append(Flaw(path, f"must name 1 to {MAX_STORE_PROVIDERS} key management providers, found {len(entry)}"))
    for index, reference in enumerate(entry):
        if not isinstance(reference, str) or _REFERENCE.fullmatch(reference) is None:
            wanted = "must be the name of a key management provider, or namespace/name"
            flaws.append(Flaw(path + step(index), f"{wanted}, found {describe(reference)}"))
    stores[store] = TrustStoreEntry(path, tuple(map(str, entry)))


class RevocationParameters(Section):
    """Where OCSP responders and CRLs may be.

    Attributes:
        allow_private_addresses: certificates may name responders with private addresses: an authority of one's own.
        allowed_hosts: hosts that may be asked; empty: any.
    """

    allow_private_addresses: Annotated[bool, cluster_only("lets the provider call private addresses")] = False
    allowed_hosts: Listed[Host] = ()


class NotationParameters(Section):
    """Parameters of `notation`.

    Attributes:
        trust_policy_doc: the Notary Project trust policy document.
        verification_cert_stores: key providers, `name` or `namespace/name`, of each trust store.
        verification_certs: folders or files of certificates, that serve every trust store of the policy; not used
            beside verification_cert_stores.
        max_signature_attempts: signatures tried for one image.
        user_metadata: what every signature must carry.
        revocation: where OCSP responders and CRLs may be.
        nested_references: Ratify's; signatures have no signatures of their own here.
    """

    trust_policy_doc: Annotated[TrustPolicyDocument, BeforeValidator(_read_trust_policy)]
    verification_cert_stores: Annotated[
        Mapping[TrustStoreKey, TrustStoreEntry], PlainValidator(_read_trust_stores), Field(default_factory=dict)
    ]
    verification_certs: Listed[AbsolutePath] = ()
    max_signature_attempts: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS)] = DEFAULT_MAX_ATTEMPTS
    user_metadata: Annotated[dict[Text, str], Field(default_factory=dict)]
    revocation: RevocationParameters = RevocationParameters()
    nested_references: str | None = None

    def oddities(self) -> Iterable[Flaw]:
        """Settings without effect, and what the trust policy says that is probably not meant."""
        for warning in self.trust_policy_doc.warnings:
            path, _, message = warning.partition(": ")
            yield Flaw(join("trustPolicyDoc", path), message)
        if self.verification_certs and self.verification_cert_stores:
            yield Flaw("verificationCerts", "has no effect beside verificationCertStores")
        if self.nested_references:
            yield Flaw("nestedReferences", "has no effect: what refers to a signature is not verified")
