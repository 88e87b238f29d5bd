"""Trust policies whose signatures stop verifying within days: short-lived certificates without time-stamps.

    find_short_lived(...) -> what the warning of `countersign check-config` says, statement by statement

What can be known of a configuration, and what is warned of:
- A `ca` trust store holds an authority that certifies short-lived signers only: those of Artifact Signing (formerly
  Trusted Signing) by their names. Their certificates are valid for 72 hours.
- A `ca` trust store holds a self-signed signing certificate that is itself valid for a week at most.
- And the statement lists no `tsa` trust store, while it enforces the authentic time-stamp.

What cannot be known before a signature is there: how long the signers of any other authority are certified, and what a
key service or a folder will hold. About these nothing is said.

Rules: a name proves nothing and decides nothing here; it leads to a sentence that somebody reads.

What does not belong here: trust (notation/), where the sentence stands (consistency.py).
Source: Artifact Signing, "certificate management": certificates are renewed daily and valid for three days.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from provider.notation.certificates import Certificate
from provider.notation.trust_policy import Action, Check, StoreType, TrustPolicyStatement

SHORT: Final = timedelta(days=7)  # a certificate of a week is renewed in between only by a service

# "Microsoft Identity Verification Root Certificate Authority 2020" (Public Trust), its Enterprise sister (Private
# Trust), and what both have certified: "Microsoft ID Verified CS EOC CA 01", "Microsoft Enterprise ID Verified ...".
_ARTIFACT_SIGNING: Final = re.compile(
    r"(?:^|,)CN=Microsoft (?:Enterprise )?(?:Identity Verification Root|ID Verified) ", re.IGNORECASE
)


def find_short_lived(statement: TrustPolicyStatement, certificates: Iterable[Certificate]) -> str | None:
    """Why signatures under a statement will stop verifying within days; None when nothing says so.

    Args:
        statement: the statement.
        certificates: what its `ca` trust stores are known to hold.
    """
    if any(store_type is StoreType.TSA for store_type, _ in statement.trust_stores):
        return None
    if statement.action(Check.AUTHENTIC_TIMESTAMP) is not Action.ENFORCE:
        return None
    for certificate in certificates:
        lifetime = _lifetime_of_signers(certificate)
        if lifetime is not None:
            return (
                f'lists no tsa trust store, and signers under "{certificate.subject_text}" have certificates for '
                f"{lifetime}: their signatures stop verifying then. Add the root of the time-stamp authority as a "
                "tsa trust store, and sign with time-stamps"
            )
    return None


def _lifetime_of_signers(certificate: Certificate) -> str | None:
    """How long signers under a trust anchor are certified, in words, if it is short and known."""
    if certificate.is_authority:
        return "72 hours" if _ARTIFACT_SIGNING.search(certificate.subject_text) else None
    validity = certificate.not_after - certificate.not_before
    if validity > SHORT:
        return None
    hours = max(1, round(validity / timedelta(hours=1)))
    return f"{hours} hour{'' if hours == 1 else 's'}"
