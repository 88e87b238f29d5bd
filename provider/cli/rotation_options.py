"""The options of `countersign serve` for a serving certificate that the provider keeps itself.

Rules: without --rotate-certs none of the others may stand; with it, what cannot be guessed has to. Days and seconds are
given as numbers, and what follows from a lifetime (when to renew) is not asked for.

What does not belong here: what the rotation does (gatekeeper/rotation_plan.py), files (serving.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

from provider.cli.options import NumberRange, option
from provider.errors import UsageError
from provider.gatekeeper.rotation_plan import ProviderSpec, RotationSettings

C = TypeVar("C", bound=Callable[..., Any])

SECTION: Final = "Serving certificate that the provider makes and renews itself"

_CA_RENEWAL: Final = 4  # an authority is changed when a quarter of its life is left, but see RotationSettings
_LEAF_RENEWAL: Final = 3  # a serving certificate is renewed when a third is left
_LOOKS: Final = 30  # in the life of a serving certificate, at least
_DEFAULT_CA_DAYS: Final = 730.0
_DEFAULT_LEAF_DAYS: Final = 90.0
_DEFAULT_SETTLE_SECONDS: Final = 300.0
_DAYS: Final = NumberRange(min=0.0, max=36500.0, min_open=True)
_SECONDS: Final = NumberRange(min=0.0, max=86400.0, min_open=True)


@dataclass(frozen=True, slots=True)
class RotationFlags:
    """What the options say; the namespace is known only when there is a way to the cluster."""

    service: str
    secret: str
    providers: tuple[str, ...]
    restore: Mapping[str, ProviderSpec]
    more_names: tuple[str, ...]
    ca_lifetime: timedelta
    leaf_lifetime: timedelta
    settle: timedelta

    def settings(self, namespace: str) -> RotationSettings:
        """The settings of the rotation in a namespace.

        Raises:
            UsageError: they make no sense.
        """
        usual = RotationSettings("any", "any", "any", ("any",))
        renew_before = min(usual.ca_renew_before, self.ca_lifetime / _CA_RENEWAL)
        if self.leaf_lifetime > renew_before:
            raise UsageError(
                "USAGE",
                "--rotate-leaf-days is too long: certificates of the old CA would outlive it",
                expected=f"at most {renew_before / timedelta(days=1):g}: a quarter of --rotate-ca-days, and 180",
                found=f"{self.leaf_lifetime / timedelta(days=1):g}",
            )
        if self.settle >= self.leaf_lifetime / _LEAF_RENEWAL:
            raise UsageError(
                "USAGE",
                "--rotate-settle-seconds is too long: the certificate in use would expire meanwhile",
                expected=f"less than {(self.leaf_lifetime / _LEAF_RENEWAL).total_seconds():g}, a third of"
                " --rotate-leaf-days",
                found=f"{self.settle.total_seconds():g}",
            )
        poll_seconds = min(usual.poll_seconds, self.leaf_lifetime.total_seconds() / _LOOKS)
        return RotationSettings(
            self.service,
            namespace,
            self.secret,
            self.providers,
            restore=self.restore,
            more_names=self.more_names,
            ca_lifetime=self.ca_lifetime,
            ca_renew_before=renew_before,
            leaf_lifetime=self.leaf_lifetime,
            leaf_renew_before=self.leaf_lifetime / _LEAF_RENEWAL,
            settle=self.settle,
            retire=min(usual.retire, self.leaf_lifetime),
            poll_seconds=poll_seconds,
            pause_seconds=min(usual.pause_seconds, poll_seconds),
        )


def rotation_options(command: C) -> C:
    """--rotate-... and --restore-provider; `rotation_flags` takes their values."""
    for decorator in reversed(_OPTIONS):
        command = decorator(command)
    return command


_OPTIONS: Final = (
    option(
        "--rotate-certs",
        section=SECTION,
        is_flag=True,
        help="Make a CA and a serving certificate, keep them in a Secret, write the CA into the caBundle of the"
        " Providers, and renew all of it ahead of expiry. --cert-dir is then where the pair is put for serving; without"
        " it that is a folder in memory.",
    ),
    option(
        "--rotate-service",
        section=SECTION,
        metavar="NAME",
        help="Service that Gatekeeper calls; the certificate is for NAME.NAMESPACE. Needed with --rotate-certs.",
    ),
    option(
        "--rotate-secret",
        section=SECTION,
        metavar="NAME",
        help="Secret that the keys are kept in, in --namespace. Needed with --rotate-certs. One that cert-manager or"
        " somebody else keeps is never written.",
    ),
    option(
        "--rotate-provider",
        "rotate_providers",
        section=SECTION,
        multiple=True,
        metavar="NAME",
        help="Provider object whose caBundle is kept; nothing else of it is written. Needed with --rotate-certs.",
    ),
    option(
        "--restore-provider",
        "restore_providers",
        section=SECTION,
        multiple=True,
        metavar="NAME,TIMEOUT,URL",
        help="Make this Provider again when it has been missing for a minute, instead of only reporting it.",
    ),
    option(
        "--rotate-name",
        "rotate_names",
        section=SECTION,
        multiple=True,
        metavar="NAME",
        help="Further DNS name or IP address for the certificate, for a Gatekeeper outside of the cluster.",
    ),
    option(
        "--rotate-ca-days",
        section=SECTION,
        type=_DAYS,
        default=_DEFAULT_CA_DAYS,
        help="Lifetime of the CA. It is changed when a quarter of it, at most 180 days, is left; old and new stand in"
        " every caBundle side by side until nobody can need the old one.",
    ),
    option(
        "--rotate-leaf-days",
        section=SECTION,
        type=_DAYS,
        default=_DEFAULT_LEAF_DAYS,
        help="Lifetime of the serving certificate, at most a quarter of the CA's. It is renewed when a third is left.",
    ),
    option(
        "--rotate-settle-seconds",
        section=SECTION,
        type=_SECONDS,
        default=_DEFAULT_SETTLE_SECONDS,
        help="How long a new CA must have stood in every caBundle before a certificate of it is served: time for every"
        " Gatekeeper to learn.",
    ),
)


def rotation_flags(
    *,
    rotate_certs: bool,
    rotate_service: str | None,
    rotate_secret: str | None,
    rotate_providers: Sequence[str],
    restore_providers: Sequence[str],
    rotate_names: Sequence[str],
    rotate_ca_days: float,
    rotate_leaf_days: float,
    rotate_settle_seconds: float,
) -> RotationFlags | None:
    """What was asked for; None when it was not.

    Raises:
        UsageError: options contradict each other, or one is missing or malformed.
    """
    named: Mapping[str, object] = {
        "--rotate-service": rotate_service,
        "--rotate-secret": rotate_secret,
        "--rotate-provider": rotate_providers,
    }
    if not rotate_certs:
        numbers = {
            "--rotate-ca-days": rotate_ca_days != _DEFAULT_CA_DAYS,
            "--rotate-leaf-days": rotate_leaf_days != _DEFAULT_LEAF_DAYS,
            "--rotate-settle-seconds": rotate_settle_seconds != _DEFAULT_SETTLE_SECONDS,
        }
        others = {"--restore-provider": restore_providers, "--rotate-name": rotate_names}
        given = [name for name, value in {**named, **others, **numbers}.items() if value]
        if given:
            raise UsageError(
                "USAGE",
                f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} a meaning with --rotate-certs only",
                expected="--rotate-certs beside it, or none of these",
            )
        return None
    missing = [name for name, value in named.items() if not value]
    if missing or rotate_service is None or rotate_secret is None:
        raise UsageError(
            "USAGE",
            f"--rotate-certs needs {', '.join(missing)} too",
            expected="--rotate-certs --rotate-service NAME --rotate-secret NAME --rotate-provider NAME",
        )
    return RotationFlags(
        service=rotate_service,
        secret=rotate_secret,
        providers=tuple(dict.fromkeys(rotate_providers)),
        restore=_restored(restore_providers, rotate_providers),
        more_names=tuple(rotate_names),
        ca_lifetime=timedelta(days=rotate_ca_days),
        leaf_lifetime=timedelta(days=rotate_leaf_days),
        settle=timedelta(seconds=rotate_settle_seconds),
    )


def _restored(values: Sequence[str], providers: Sequence[str]) -> dict[str, ProviderSpec]:
    specs: dict[str, ProviderSpec] = {}
    for value in values:
        name, timeout, url = (*value.split(",", 2), "", "")[:3]
        if not (name and url and timeout.isascii() and timeout.isdigit()):
            raise UsageError(
                "USAGE",
                "--restore-provider cannot be read",
                expected="NAME,TIMEOUT,URL with whole seconds, such as"
                " ratify-provider,4,https://ratify.gatekeeper-system:6001/ratify/gatekeeper/v1/verify",
                found=value,
            )
        if name not in providers or name in specs:
            problem = "twice" if name in specs else "without --rotate-provider"
            raise UsageError(
                "USAGE", f"--restore-provider names {name} {problem}", expected=f"--rotate-provider {name}, once each"
            )
        specs[name] = ProviderSpec(url, int(timeout[:9]))
    return specs
