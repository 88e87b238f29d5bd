"""What resources say of each other: references that lead nowhere, names that stand twice, parts that are missing.

Rules:
- A pure function of the resources: no file, no network, no clock.
- What would make every image be refused, or one be admitted by other certificates than was written, is a fault. What
  can be meant, and mostly is not, is a warning: it was somebody's lost afternoon before.
- A resource that was left out because of its own faults causes no further ones here.

What does not belong here: a resource by itself (documents.py), live objects (assembly.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from typing import Final

from provider.configuration.documents import ANY_TYPE, Findings
from provider.configuration.key_providers import InlineParameters
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.resources import Component, Resource, ResourceSet
from provider.configuration.sections import join, step, suggest
from provider.configuration.short_lived import find_short_lived
from provider.configuration.verifiers import NotationParameters, TrustStoreEntry, TrustStoreKey
from provider.errors import ConfigurationError, Fault
from provider.notation.certificates import check_timestamp_trust_anchor, check_trust_anchor
from provider.notation.trust_policy import StoreType

MAX_SUGGESTED: Final = 30  # names that a misspelled one is compared with; each may take a tenth of a millisecond
MAX_COMPARED: Final = (
    20  # misspelled names of a set that are compared; whoever writes Verifiers chooses how many there are
)

_WHOLE: Final = "configuration"  # the source of findings that belong to no file
STORES_PATH: Final = "spec.parameters.verificationCertStores"  # faults beneath it are about key providers
_POLICY: Final = "spec.parameters.trustPolicyDoc"


def check_set(resources: ResourceSet, findings: Findings) -> None:
    """Check a set of resources, each of which is right by itself.

    Args:
        resources: the set.
        findings: what is known so far; takes what is wrong or odd about the set.
    """
    _Check(resources, findings).run()


def check_completeness(resources: ResourceSet, findings: Findings) -> None:
    """Check only whether a set has what it takes to decide; a part of `check_set`.

    Args:
        resources: the set.
        findings: as for `check_set`.
    """
    _Check(resources, findings).completeness()


class _Check:
    """One run over one set."""

    def __init__(self, resources: ResourceSet, findings: Findings) -> None:
        self._resources = resources
        self._findings = findings
        self._used: set[str] = set()  # labels of key providers that a trust store uses
        self._compared = 0

    def run(self) -> None:
        self._names()
        for verifier in self._resources.verifiers:
            if isinstance(verifier.parameters, NotationParameters):
                self._trust_stores(verifier, verifier.parameters)
        self._key_providers()
        for namespace in ("", *self._resources.namespaces):
            self._stores(namespace)
            self._policies(namespace)
        self.completeness()

    # -- names ----------------------------------------------------------------------------------------------------

    def _names(self) -> None:
        first: dict[str, Resource] = {}
        for resource in self._resources:
            earlier = first.setdefault(resource.label, resource)
            if earlier is not resource:
                self._fault(resource, "metadata.name", f"stands here a second time, first in {earlier.source}")

    # -- trust stores ---------------------------------------------------------------------------------------------

    def _trust_stores(self, verifier: Resource, parameters: NotationParameters) -> None:
        named = _named_stores(parameters)
        stores = parameters.verification_cert_stores
        if stores or not parameters.verification_certs:  # else folders serve whatever the policy names
            for store, path in named.items():
                if store not in stores:
                    near = suggest(_store_name(store), map(_store_name, stores))
                    self._fault(verifier, path, f"{_store_name(store)} is not in verificationCertStores{near}")
        for store, entry in stores.items():
            path = join(STORES_PATH, entry.path)
            if store not in named:
                self._warn(verifier, path, f"no statement of the trust policy uses {_store_name(store)}")
            for index, reference in enumerate(entry.references):
                self._reference(verifier, store, reference, path + step(index))
        self._twins(verifier, stores)
        self._short_lived(verifier, parameters)

    def _short_lived(self, verifier: Resource, parameters: NotationParameters) -> None:
        """Signers whose certificates end within days, and no time-stamp that would outlive them."""
        stores = parameters.verification_cert_stores
        for number, statement in enumerate(parameters.trust_policy_doc.statements):
            references = (
                reference
                for store in statement.trust_stores
                if store[0] is StoreType.CA and store in stores
                for reference in stores[store].references
            )
            providers = (self._resources.find_key_provider(one, verifier.namespace) for one in references)
            known = (
                certificate
                for provider in providers
                if provider is not None and isinstance(provider.parameters, InlineParameters)
                for certificate in provider.parameters.material().certificates
            )
            problem = find_short_lived(statement, known)
            if problem is not None:
                self._warn(verifier, f"{_POLICY}.trustPolicies[{number}].trustStores", problem)

    def _reference(self, verifier: Resource, store: TrustStoreKey, reference: str, path: str) -> None:
        provider = self._resources.find_key_provider(reference, verifier.namespace)
        if provider is None:
            if not self._is_broken(reference):
                self._fault(verifier, path, self._why_unreachable(reference, verifier.namespace))
            return
        self._used.add(provider.label)
        if isinstance(provider.parameters, InlineParameters):
            self._anchors(verifier, store, provider, provider.parameters, path)

    def _anchors(
        self, verifier: Resource, store: TrustStoreKey, provider: Resource, parameters: InlineParameters, path: str
    ) -> None:
        """Certificates that may not anchor trust are left out of a store, as in Ratify: a fault if all are."""
        check = check_timestamp_trust_anchor if store[0] is StoreType.TSA else check_trust_anchor
        certificates = parameters.material().certificates
        problems = []
        for certificate in certificates:
            try:
                check(certificate)
            except ConfigurationError as error:
                problems.append(error.detail)
        if not certificates:
            self._fault(verifier, path, f"{provider.label} holds a key, a trust store needs certificates")
        elif len(problems) == len(certificates):
            use = _store_name(store)
            self._fault(verifier, path, f"{provider.label} holds no certificate that {use} can use: {problems[0]}")
        else:
            for problem in problems:
                self._warn(verifier, path, f"{provider.label}: a certificate is left out: {problem}")

    def _is_broken(self, reference: str) -> bool:
        namespace, _, name = reference.rpartition("/")
        homes = (namespace,) if namespace else ("", self._resources.home)
        return any((Component.KEY_PROVIDER, home, name) in self._findings.broken for home in homes)

    def _why_unreachable(self, reference: str, namespace: str) -> str:
        """Why a Verifier of `namespace` finds no key provider by this reference."""
        _, _, name = reference.rpartition("/")
        missing = f"there is no KeyManagementProvider {reference} within reach"
        for provider in self._namesakes.get(name, ()):
            if namespace and provider.namespace not in ("", namespace):
                continue  # a tenant is not told what others have
            if self._resources.find_key_provider(provider.reference, namespace) is provider:
                return f"{missing}; did you mean {provider.reference}?"
            return f"{missing}: {provider.label} serves the Verifiers of its namespace only"
        self._compared += 1
        if self._compared > MAX_COMPARED:
            return missing
        reachable = (one for one in self._references if self._resources.find_key_provider(one, namespace))
        return f"{missing}{_suggest(reference, tuple(islice(reachable, MAX_SUGGESTED)))}"

    @cached_property
    def _namesakes(self) -> Mapping[str, Sequence[Resource]]:
        namesakes: dict[str, list[Resource]] = {}
        for provider in self._resources.key_providers:
            namesakes.setdefault(provider.name, []).append(provider)
        return namesakes

    @cached_property
    def _references(self) -> Sequence[str]:
        return sorted({provider.reference for provider in self._resources.key_providers})

    def _twins(self, verifier: Resource, stores: Mapping[TrustStoreKey, TrustStoreEntry]) -> None:
        """Two stores of one type over the same providers: what comes of writing ca where tsa was meant."""
        first: dict[tuple[StoreType, tuple[str, ...]], TrustStoreKey] = {}
        for store, entry in stores.items():
            earlier = first.setdefault((store[0], tuple(sorted(entry.references))), store)
            if earlier != store:
                same = f"{_store_name(store)} holds the same as {_store_name(earlier)}"
                self._warn(verifier, join(STORES_PATH, entry.path), f"{same}: was another type or provider meant?")

    # -- key providers --------------------------------------------------------------------------------------------

    def _key_providers(self) -> None:
        names = {(one.namespace, one.name) for one in self._resources.key_providers if not one.is_former_store}
        for provider in self._resources.key_providers:
            shadows = {(provider.namespace, provider.name)}
            if provider.namespace == self._resources.home:
                shadows.add(("", provider.name))
            if provider.label in self._used:
                continue
            if provider.is_former_store and shadows & names:
                self._warn(provider, "metadata.name", "is not used: a KeyManagementProvider of its name goes before")
            elif not self._lacks_broken(Component.VERIFIER):
                self._warn(provider, "", "no trust store of a Verifier uses it")

    # -- scopes ---------------------------------------------------------------------------------------------------

    def _stores(self, namespace: str) -> None:
        stores = self._resources.own(Component.STORE, namespace)
        for store in stores[1:]:
            asked = f"is asked only for images that {stores[0].label} does not have"
            self._warn(store, "", f"{asked}: Stores are asked in the order of their names")

    def _policies(self, namespace: str) -> None:
        """Required types that nobody verifies."""
        verifiers = self._resources.in_scope(Component.VERIFIER, namespace)
        judged = {kind for verifier in verifiers for kind in verifier.artifact_types}
        if ANY_TYPE in judged or self._lacks_broken(Component.VERIFIER):
            return
        for policy in self._resources.own(Component.POLICY, namespace):
            if not isinstance(policy.parameters, ConfigPolicyParameters):
                continue
            for kind in sorted(policy.parameters.rules.keys() - judged):
                path = join("spec.parameters.artifactVerificationPolicies", step(kind))
                self._warn(policy, path, "no Verifier judges this type: every image is refused")

    def completeness(self) -> None:
        """A scope decides when it has all three; without any scope that does there is no configuration."""
        incomplete = {namespace: self._missing(namespace) for namespace in ("", *self._resources.namespaces)}
        missing = incomplete[""]
        if not missing:
            return
        names = " and ".join(f"a {component.value}" for component in missing)
        if not all(incomplete.values()):
            covered = ", ".join(namespace for namespace, lacking in incomplete.items() if not lacking)
            message = f"lacks {names} for the whole cluster: images are refused, except in the namespaces {covered}"
            self._findings.warnings.append(Fault(_WHOLE, "", "", message))
        elif not any(self._lacks_broken(component) for component in missing):
            message = f"lacks {names}; it takes a Store, a Verifier and a Policy to decide"
            self._findings.faults.append(Fault(_WHOLE, "", "", message))

    def _missing(self, namespace: str) -> tuple[Component, ...]:
        deciding = (Component.STORE, Component.VERIFIER, Component.POLICY)
        return tuple(component for component in deciding if not self._resources.in_scope(component, namespace))

    def _lacks_broken(self, component: Component) -> bool:
        return any(broken is component for broken, _, _ in self._findings.broken)

    # -- telling --------------------------------------------------------------------------------------------------

    def _fault(self, resource: Resource, path: str, message: str) -> None:
        self._findings.faults.append(Fault(resource.source, resource.label, path, message))

    def _warn(self, resource: Resource, path: str, message: str) -> None:
        self._findings.warnings.append(Fault(resource.source, resource.label, path, message))


# A cluster's set is checked anew with each change, and mostly has the names that it had before.
_suggest: Final = lru_cache(maxsize=1024)(suggest)


def _named_stores(parameters: NotationParameters) -> dict[TrustStoreKey, str]:
    """The trust stores that the policy names, each with the path of its first mention."""
    named: dict[TrustStoreKey, str] = {}
    for number, statement in enumerate(parameters.trust_policy_doc.statements):
        for index, store in enumerate(statement.trust_stores):
            named.setdefault(store, f"{_POLICY}.trustPolicies[{number}].trustStores[{index}]")
    return named


def _store_name(store: TrustStoreKey) -> str:
    return f"{store[0].value}:{store[1]}"
