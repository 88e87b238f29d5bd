"""Runs one case of a vector folder through the product's own code and compares the verdict.

Rules: a case names its files relative to its folder; nothing is fetched (the case's `http` map is the whole network);
the clock is fixed. What is compared is the verdict and, where the case names one, the check that failed; never words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from provider.errors import ConfigurationError, CountersignError, Refused
from provider.executor import Executor, Scope, Snapshot
from provider.interfaces import KeyMaterial
from provider.key_management.directory import read_trust_store
from provider.notation.certificates import (
    Certificate,
    check_code_signing_chain,
    check_timestamping_chain,
    parse_certificates,
)
from provider.notation.envelope import open_envelope
from provider.notation.ocsp import OcspQuery
from provider.notation.revocation import Answer, Fetch, FetchFailure, Inquiry, Keep, Purpose, check_chain
from provider.notation.timestamp import verify_timestamp
from provider.notation.trust_policy import Level, StoreType, TrustPolicyDocument
from provider.notation.verification import Outcome, verify
from provider.oci import Descriptor
from provider.policy import ConfigPolicy, Rule
from provider.stores.oci_layout import OciLayoutStore
from provider.verifiers.notation import ARTIFACT_TYPE, NotationVerifier

AT = datetime(2026, 11, 23, tzinfo=UTC)  # any time between 2024-07-01 and 2118 gives the same verdicts
DEFAULT_ATTEMPTS = 50

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One case and the folder that its files are in."""

    folder: Path
    data: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.data["id"])

    @property
    def kind(self) -> str:
        return str(self.data.get("kind") or "policy")

    @property
    def expected(self) -> str:
        return str(self.data["expected"])

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


def load_cases(folder: Path) -> list[Case]:
    """The cases of a folder."""
    return [Case(folder, data) for data in json.loads((folder / "cases.json").read_text())]


def drive(case: Case, generator: Inquiry[T]) -> T:
    """Run a generator of the core on the case's own network."""
    try:
        queries = next(generator)
        while True:
            answers = {query: _answer(case, query) for query in queries if not isinstance(query, Keep)}
            queries = generator.send(answers)
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]


def _answer(case: Case, query: Fetch) -> Answer:
    network: Mapping[str, str] = case.data.get("http") or {}
    for url in (query.url, query.get_url if isinstance(query, OcspQuery) else None):
        source = network.get(url or "")
        if source is not None and source != "timeout" and not source.startswith("status:"):
            return case.read(source)
        if source is not None:
            return FetchFailure(source)
    return FetchFailure("not reachable")


def trust_stores(case: Case, document: TrustPolicyDocument) -> dict[tuple[StoreType, str], tuple[Certificate, ...]]:
    """Every store that the document names and that loads; the rest are missing, as they are for notation."""
    root = case.folder / case.data.get("trustRoot", "") / "truststore" / "x509"
    stores = {}
    for statement in document.statements:
        for store_type, name in statement.trust_stores:
            try:
                stores[store_type, name] = read_trust_store(
                    root / store_type.value / name, timestamping=store_type is StoreType.TSA
                )
            except ConfigurationError:
                continue
    return stores


def run(case: Case) -> None:
    """Judge one case. Raises AssertionError where the verdict is not the expected one."""
    try:
        _JUDGES[case.kind](case)
    except AssertionError:
        if case.expected != "either":
            raise


# -- trust policy documents -------------------------------------------------------------------------------------------


def _judge_policy(case: Case) -> None:
    verdict, selected = _policy_verdict(case)
    expected, _, rest = case.expected.partition(";")
    assert verdict == expected.upper(), case.expected
    if "selects" in case.data:
        assert selected == case.data["selects"]
    if match := re.fullmatch(r" selects (.*)", rest):
        assert selected == match.group(1)
    if "no applicable statement" in rest:
        assert selected is None


def _policy_verdict(case: Case) -> tuple[str, str | None]:
    try:
        document = TrustPolicyDocument.parse(json.dumps(case.data["policy"]).encode())
    except ConfigurationError:
        return "INVALID", None
    try:
        return "VALID", document.select(case.data["ref"].rpartition("@")[0]).name
    except Refused:
        return "VALID", None


# -- envelopes --------------------------------------------------------------------------------------------------------


def _judge_integrity(case: Case) -> None:
    try:
        envelope = open_envelope(case.read(case.data["sig"]), case.data["mediaType"])
    except Refused as refusal:
        code = refusal.code
        assert case.expected.startswith("reject") or (
            "then reject" in case.expected and code == "CRITICAL_ATTRIBUTE_UNKNOWN"
        )
        return
    assert case.expected == "integrity-ok"
    info = case.data.get("info") or {}
    if info:
        assert envelope.signing_scheme == info["scheme"]
        assert envelope.signing_time == _time(info["signingTime"])
        assert envelope.expiry == _time(info["expiry"])
        assert len(envelope.chain) == len(info["chain"])
        assert len(envelope.timestamp_token or b"") == info["timestampTokenOctets"]


def _time(text: str) -> datetime | None:
    return None if text.startswith("0001-") else datetime.fromisoformat(text)


def _outcome(case: Case) -> Outcome | None:
    """What came of a verification; None where the policy waives it."""
    document = TrustPolicyDocument.parse(json.dumps(case.data["policy"]).encode())
    statement = document.select(case.data["ref"].rpartition("@")[0])
    if statement.level is Level.SKIP:
        return None
    generator = verify(
        case.read(case.data.get("file") or case.data["sig"]),
        case.data["mediaType"],
        target=Descriptor.parse(case.data["desc"]),
        statement=statement,
        trust_stores=trust_stores(case, document),
        required_metadata=case.data.get("meta") or {},
        at=AT,
    )
    return drive(case, generator)


def _judge_verify(case: Case) -> None:
    expected = case.expected
    try:
        outcome = _outcome(case)
    except ConfigurationError:
        assert expected == "policy-invalid"
        return
    except Refused:  # no statement covers the reference
        assert expected.casefold().startswith("reject")
        return
    assert expected != "policy-invalid", "the trust policy was accepted"
    if outcome is None:
        assert expected == "accept"
        return
    failure = outcome.failure
    if expected.casefold().startswith("accept"):
        assert failure is None, failure
        if "logged" in case.data:
            assert [check.check for check in outcome.logged] == case.data["logged"]
    else:
        assert failure is not None, "the signature was accepted"
        wanted = re.match(r"(?i)reject[:(]([A-Za-z]+)", expected)
        if wanted and "plugin" not in expected:
            assert failure.check == wanted.group(1) or expected.startswith("REJECT(payload/other)"), failure


# -- revocation, chains, tokens, stores -------------------------------------------------------------------------------


def _judge_revocation(case: Case) -> None:
    purpose = Purpose.TIMESTAMPING if case.data["purpose"].startswith("timestamp") else Purpose.CODE_SIGNING
    signing_time = _time(case.data["signingTime"]) if case.data["signingTime"] else None
    try:
        chain = parse_certificates(case.read(case.data["chain"]))
        status = drive(case, check_chain(chain, purpose=purpose, at=AT, signing_time=signing_time)).status.value
    except CountersignError:
        status = "error"
    assert status.casefold() == case.expected.partition(" ")[0].casefold()


def _judge_chain(case: Case) -> None:
    check = check_timestamping_chain if case.data["purpose"].startswith("timestamp") else check_code_signing_chain
    _expect(case, lambda: check(parse_certificates(case.read(case.data["chain"]))))


def _judge_token(case: Case) -> None:
    message = re.fullmatch(r'ASCII text "(.*)" \(\d+ octets\)', case.data["message"])
    assert message is not None
    roots = parse_certificates(case.read(case.data["roots"]))
    _expect(case, lambda: verify_timestamp(case.read(case.data["sig"]), message.group(1).encode(), roots))


def _expect(case: Case, judge: Callable[[], object]) -> None:
    try:
        judge()
    except (Refused, ConfigurationError):
        assert case.expected.startswith("reject")
    else:
        assert case.expected.startswith("accept")


def _judge_trust_store(case: Case) -> None:
    folder = case.folder / case.data["trustRoot"] / "truststore" / "x509" / case.data["storeType"] / case.data["store"]
    try:
        certificates = read_trust_store(folder, timestamping=case.data["storeType"] == "tsa")
    except ConfigurationError:
        assert case.expected == "error"
    else:
        assert case.expected == f"loads {len(certificates)} certificates"


# -- OCI layouts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fixed:
    """A key source that holds certificates read from a vector folder."""

    name: str
    certificates: tuple[Certificate, ...]

    def material(self) -> KeyMaterial:
        return KeyMaterial(certificates=self.certificates)

    async def refresh(self) -> None:
        """Nothing to load again."""


class _CaseNetwork:
    """Drives the core's generators on the case's own network, where the product has its fetcher."""

    def __init__(self, case: Case) -> None:
        self._case = case

    async def run(self, generator: Inquiry[T]) -> T:
        return drive(self._case, generator)


async def judge_layout(case: Case) -> None:
    """Judge an OCI layout through store, verifier, policy and executor."""
    document = TrustPolicyDocument.parse(json.dumps(case.data["policy"]).encode())
    verifier = NotationVerifier(
        name="verifier-notation",
        document=document,
        trust_stores={
            (kind, name): (_Fixed(name, certificates),)
            for (kind, name), certificates in trust_stores(case, document).items()
        },
        revocation=_CaseNetwork(case),  # type: ignore[arg-type]
        max_attempts=case.data.get("max") or DEFAULT_ATTEMPTS,
    )
    store = OciLayoutStore("layout", case.folder / (case.data.get("layout") or case.data["chain"]))
    executor = Executor(clock=lambda: AT)
    executor.use(Snapshot(1, {"": Scope((store,), (verifier,), ConfigPolicy({ARTIFACT_TYPE: Rule.ANY}))}))
    verdict = (await executor.verify(case.data["ref"])).verdict
    expected = case.expected.casefold()
    if expected.startswith("accept"):
        assert verdict.is_success, verdict
    elif expected != "either":
        assert not verdict.is_success
        if "no-signature" in expected or "no signature" in expected:
            assert verdict.code == "UNSIGNED"
        if expected == "reject:limit":
            assert verdict.code == "SIGNATURE_LIMIT"


_JUDGES: Mapping[str, Callable[[Case], None]] = {
    "policy": _judge_policy,
    "integrity": _judge_integrity,
    "verify": _judge_verify,
    "revocation": _judge_revocation,
    "chain": _judge_chain,
    "tst": _judge_token,
    "truststore": _judge_trust_store,
}
