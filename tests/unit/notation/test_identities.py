"""Which subjects a trusted identity names, and that a certificate matches only what it says, all of it, once."""

from __future__ import annotations

import contextlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import ConfigurationError, Refused
from provider.notation.certificates import Certificate
from provider.notation.identities import MAX_IDENTITY_LENGTH, IdentityKind, TrustedIdentity, match_identity
from tests.simulators.signer import certificate, subject

KEY = ec.generate_private_key(ec.SECP256R1())
CONTOSO = {"C": "US", "ST": "WA", "O": "Contoso"}


def leaf(name: x509.Name) -> Certificate:
    return Certificate.parse(certificate(KEY, name=name, issuer_key=KEY))


def contoso(**more: str) -> Certificate:
    return leaf(subject(COUNTRY_NAME="US", STATE_OR_PROVINCE_NAME="WA", ORGANIZATION_NAME="Contoso", **more))


def parsed(dn: str) -> dict[str, str]:
    identity = TrustedIdentity.parse(f"x509.subject:{dn}")
    assert identity.kind is IdentityKind.X509_SUBJECT
    return dict(identity.attributes)


def fault(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        TrustedIdentity.parse(text)
    assert caught.value.code == "TRUST_POLICY_INVALID"
    return caught.value.reason


def matches(signing: Certificate, *identities: str) -> bool:
    try:
        found = match_identity(signing, [TrustedIdentity.parse(text) for text in identities])
    except Refused as error:
        if error.code != "UNTRUSTED_IDENTITY":
            raise
        return False
    return found.text in identities


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dn", "attributes"),
    [
        ("C=US,ST=WA,O=Contoso", CONTOSO),
        (" C=US, ST=WA, O=Contoso ", CONTOSO),
        ("  O = Contoso  ,ST= WA,  C =US", CONTOSO),
        ("C=US;ST=WA ; O=Contoso", CONTOSO),
        ("C=US, S=WA, O=Contoso", CONTOSO),
        ("C=US,ST=WA,O=Contoso,c=de", CONTOSO | {"c": "de"}),
        ("C=US,ST=WA,O=Contoso,2.5.4.3=x", CONTOSO | {"2.5.4.3": "x"}),
        ("C=US,ST=WA,O=Contoso,CustomRDN=v", CONTOSO | {"CustomRDN": "v"}),
        ("CN=x/OU=y,C=US,ST=WA,O=Contoso", CONTOSO | {"CN": "x/OU=y"}),
        ("C=US,ST=WA,O=Contoso  Test", CONTOSO | {"O": "Contoso  Test"}),
        (r"C=US,ST=WA,O=Contoso\, Inc.", CONTOSO | {"O": "Contoso, Inc."}),
        (r"C=US,ST=WA,O=A\;B", CONTOSO | {"O": "A;B"}),
        (r"C=US,ST=WA,O=A\+B", CONTOSO | {"O": "A+B"}),
        (r"C=US,ST=WA,O=\#1 Shop", CONTOSO | {"O": "#1 Shop"}),
        (r"C=US,ST=WA,O=No. #1", CONTOSO | {"O": "No. #1"}),
        (r"C=US,ST=WA,O=Trail\ ", CONTOSO | {"O": "Trail "}),
        (r"C=US,ST=WA,O=Trail\   ", CONTOSO | {"O": "Trail "}),
        (r"C=US,ST=WA,O=Trail\20 ", CONTOSO | {"O": "Trail "}),
        (r"C=US,ST=WA,O=\ Lead", CONTOSO | {"O": " Lead"}),
        (r"C=US,ST=WA,O=\ ", CONTOSO | {"O": " "}),
        (r"C=US,ST=WA,O=a\=b=c", CONTOSO | {"O": "a=b=c"}),
        (r"C=US,ST=WA,O=a\\b", CONTOSO | {"O": "a\\b"}),
        (r"C=US,ST=WA,O=a\\", CONTOSO | {"O": "a\\"}),
        (r"C=US,ST=WA,O=\"A\" \<b\>", CONTOSO | {"O": '"A" <b>'}),
        ('C=US,ST=WA,O="A" <b>', CONTOSO | {"O": '"A" <b>'}),
        (r"C=US,ST=WA,O=M\c3\BCnchner", CONTOSO | {"O": "Münchner"}),
        (r"C=US,ST=WA,O=M\C3ünchner".replace("ü", r"\bc"), CONTOSO | {"O": "Münchner"}),
        ("C=DE,ST=Bayern,O=Münchner Bäckerei 🥨", {"C": "DE", "ST": "Bayern", "O": "Münchner Bäckerei 🥨"}),
        (r"C=US,ST=WA,O=a\00b", CONTOSO | {"O": "a\0b"}),
        ("C=US,ST=WA,O=a\tb", CONTOSO | {"O": "a\tb"}),
    ],
)
def test_n45_a_name_is_read_into_its_attributes(dn: str, attributes: dict[str, str]) -> None:
    assert parsed(dn) == attributes


@pytest.mark.parametrize(
    ("dn", "why"),
    [
        ("", "is not type=value"),
        ("   ", "is not type=value"),
        ("C=US,ST=WA,O=A,", "is not type=value"),
        (",C=US,ST=WA,O=A", "is not type=value"),
        ("C=US,,ST=WA,O=A", "is not type=value"),
        ("C=US,ST=WA,O=Contoso, Inc.", "is not type=value"),
        ('C=US,ST=WA,O="A, B"', "is not type=value"),
        ("C=US,ST=WA,=A", "is not type=value"),
        ("C=US,ST=WA,O", "is not type=value"),
        (r"C=US,ST=WA,\4f=A", "is not type=value"),
        (r"C=US,ST=WA,O\=A", "is not type=value"),
        ("C=US,ST=WA,O=A+OU=B", "multi-valued"),
        ("C=US,ST=WA,O=A,CN+OU=B", "is not type=value"),
        ("C=US,ST=WA,O=A,O=B", "names O twice"),
        ("C=US,ST=WA,O=A,O=A", "names O twice"),
        ("C=US,S=WA,ST=WA,O=A", "names ST twice"),
        ("C=US,S=WA,S=WA,O=A", "names ST twice"),
        ("ST=WA,O=A", "lacks C"),
        ("C=US,O=A", "lacks ST"),
        ("C=US,ST=WA", "lacks O"),
        ("c=US,st=WA,o=A", "lacks C"),
        ("2.5.4.6=US,ST=WA,O=A", "lacks C"),
        ("C=US,\n ST=WA,O=A", "lacks ST"),
        ("C=,ST=WA,O=A", "the value of C is empty"),
        ("C=US,ST=  ,O=A", "the value of ST is empty"),
        ("C=US,ST=WA,O=A,STREET=", "the value of STREET is empty"),
        ("C=US,ST=WA,O=A,CN=#0c0141", "holds =#"),
        ("C=US,ST=WA,O=A,CN=a=#b", "holds =#"),
        ("C=US,ST=WA,O=A,CN= #0c0141", "begins with #"),
        (r"C=US,ST=WA,O=A\zB", r"unknown escape \z"),
        (r"C=US,ST=WA,O=A\c", r"unknown escape \c"),
        (r"C=US,ST=WA,O=A\cg", r"unknown escape \c"),
        ("C=US,ST=WA,O=A\\", "unknown escape \\"),
        ("C=US,ST=WA,O=A\\é", "unknown escape \\é"),
        (r"C=US,ST=WA,O=\ff", "not UTF-8"),
        (r"C=US,ST=WA,O=\c3", "not UTF-8"),
        (r"C=US,ST=WA,O=\ed\a0\80", "not UTF-8"),
        ("C=US,ST=WA,O=\ud800", "not UTF-8"),
    ],
)
def test_n45_a_name_that_could_be_read_in_two_ways_is_refused(dn: str, why: str) -> None:
    assert why in fault(f"x509.subject:{dn}")


def test_n19_names_that_cost_a_parser_dear_are_refused() -> None:
    """CVE-2023-25656: a value in hex allocated what its length octets claimed."""
    assert "longer than" in fault("x509.subject: C=US,ST=WA,O=" + "A" * 1_000_000)
    assert "holds =#" in fault("x509.subject: C=US,ST=WA,O=A,CN=#0c84ffffffff")
    longest = "x509.subject:C=US,ST=WA,O="
    longest += "\\" * (MAX_IDENTITY_LENGTH - len(longest))
    assert TrustedIdentity.parse(longest).attributes["O"].strip("\\") == ""


@pytest.mark.parametrize("text", ["", " ", "x509.subject", "x509.subject CN=a", "**", " *"])
def test_an_identity_without_a_prefix_is_refused(text: str) -> None:
    assert "prefix" in fault(text) or "empty" in fault(text)


@pytest.mark.parametrize("text", ["x509.san:foo", ":foo", "X509.subject: C=US", "x509.subject :C=US,ST=WA,O=A", "a:"])
def test_another_prefix_is_no_fault_and_matches_nothing(text: str) -> None:
    assert TrustedIdentity.parse(text).kind is IdentityKind.UNSUPPORTED
    with pytest.raises(Refused, match="no identity of a supported kind"):
        match_identity(contoso(), [TrustedIdentity.parse(text)])
    assert matches(contoso(), text, "x509.subject: C=US, ST=WA, O=Contoso")


# -- matching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dn", "expected"),
    [
        ("C=US,ST=WA,O=Contoso", True),
        ("O=Contoso,ST=WA,C=US", True),
        ("C=US,S=WA,O=Contoso,CN=signer", True),
        ("C=US,ST=WA,O=Contoso,CN=Signer", False),
        ("C=us,ST=WA,O=Contoso", False),
        ("C=US,ST=WA,O=contoso", False),
        ("C=US,ST=WA,O=Contos", False),
        ("C=US,ST=WA,O=Contoso Ltd", False),
        ("C=US,ST=WA,O=Contoso ", True),
        ("C=US,ST=WA,O=Contoso\\ ", False),
        ("C=US,ST=WA,O=Contoso,OU=Release", False),
        ("C=US,ST=WA,O=Contoso,CustomRDN=v", False),
        ("C=US,ST=WA,O=Contoso,cn=signer", False),
        ("C=US,ST=WA,O=signer,CN=Contoso", False),
    ],
)
def test_n45_every_named_attribute_must_be_in_the_subject_with_the_same_value(dn: str, expected: bool) -> None:
    assert matches(contoso(COMMON_NAME="signer"), f"x509.subject: {dn}") is expected


def test_the_identity_that_matched_is_returned() -> None:
    texts = ("x509.subject: C=US,ST=WA,O=Fabrikam", "x509.subject: C=US,ST=WA,O=Contoso")
    identities = [TrustedIdentity.parse(text) for text in texts]
    assert match_identity(contoso(), identities) is identities[1]


def test_a_refusal_names_what_was_expected_and_what_was_found() -> None:
    with pytest.raises(Refused) as caught:
        match_identity(contoso(COMMON_NAME="a"), [TrustedIdentity.parse("x509.subject: C=US,ST=WA,O=Fabrikam")])
    assert caught.value.expected == "x509.subject: C=US,ST=WA,O=Fabrikam"
    assert caught.value.found == "CN=a,O=Contoso,ST=WA,C=US"


def test_no_identity_at_all_matches_nothing() -> None:
    with pytest.raises(Refused, match="UNTRUSTED_IDENTITY"):
        match_identity(contoso(), [])


def test_the_wildcard_matches_every_subject() -> None:
    for signing_certificate in (contoso(), leaf(x509.Name([])), leaf(subject(COMMON_NAME="x"))):
        assert matches(signing_certificate, "*")


def test_n45_a_subject_without_the_mandatory_attributes_matches_no_name() -> None:
    assert not matches(leaf(subject(COMMON_NAME="Contoso")), "x509.subject: C=US,ST=WA,O=Contoso,CN=Contoso")
    assert not matches(leaf(x509.Name([])), "x509.subject: C=US,ST=WA,O=Contoso")


@pytest.mark.parametrize("repeated", ["COUNTRY_NAME", "ORGANIZATION_NAME", "ORGANIZATIONAL_UNIT_NAME", "COMMON_NAME"])
@pytest.mark.parametrize("together", [True, False])
def test_n45_a_subject_that_names_a_type_twice_matches_no_name(repeated: str, together: bool) -> None:
    """An authority that lets customers add a second O must not let them be somebody else."""
    attributes = [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "WA"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Contoso"),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "A"),
        x509.NameAttribute(NameOID.COMMON_NAME, "A"),
    ]
    more = x509.NameAttribute(getattr(NameOID, repeated), "ZZ")
    names = [x509.RelativeDistinguishedName([attribute]) for attribute in attributes]
    if together:
        same = next(attribute for attribute in attributes if attribute.oid == more.oid)
        names[attributes.index(same)] = x509.RelativeDistinguishedName([same, more])
    else:
        names.append(x509.RelativeDistinguishedName([more]))
    twice = leaf(x509.Name(names))
    with pytest.raises(Refused, match="more than once"):
        match_identity(twice, [TrustedIdentity.parse("x509.subject: C=US,ST=WA,O=Contoso")])
    assert matches(twice, "*")


def test_other_attributes_of_the_subject_do_not_hinder_a_match() -> None:
    """notation-go refuses these subjects as a whole; nobody gains by them what the identity did not name."""
    signing = contoso(DOMAIN_COMPONENT="example", BUSINESS_CATEGORY="Private", EMAIL_ADDRESS="a@b", SERIAL_NUMBER="1")
    assert matches(signing, "x509.subject: C=US,ST=WA,O=Contoso")
    assert matches(signing, "x509.subject: C=US,ST=WA,O=Contoso,SERIALNUMBER=1")
    assert not matches(signing, "x509.subject: C=US,ST=WA,O=Contoso,SERIALNUMBER=2")


def test_a_relative_name_of_several_types_counts_attribute_by_attribute() -> None:
    names = [
        x509.RelativeDistinguishedName(subject(COUNTRY_NAME="US", STATE_OR_PROVINCE_NAME="WA")),
        x509.RelativeDistinguishedName(subject(ORGANIZATION_NAME="Contoso")),
    ]
    assert matches(leaf(x509.Name(names)), "x509.subject: C=US,ST=WA,O=Contoso")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\x0cContoso", True),  # UTF8String
        (b"\x13Contoso", True),  # PrintableString
        (b"\x16Contoso", True),  # IA5String
        (b"\x14Contoso", True),  # T61String
        (b"\x04Contoso", False),  # OCTET STRING
        (b"\x0cContos\xff", False),
        (b"\x13Contos\xe9", False),
        (b"\x13Contos\0", False),
    ],
)
def test_text_is_compared_whatever_its_string_type_and_nothing_else_is_text(value: bytes, expected: bool) -> None:
    der = contoso().der.replace(b"\x0c\x07Contoso", value[:1] + b"\x07" + value[1:])
    assert matches(Certificate.parse(der), "x509.subject: C=US,ST=WA,O=Contoso") is expected


def test_code_points_are_compared_and_nothing_is_normalised() -> None:
    composed, decomposed = "M\u00fcnchner", "Mu\u0308nchner"
    signing = leaf(subject(COUNTRY_NAME="DE", STATE_OR_PROVINCE_NAME="BY", ORGANIZATION_NAME=composed))
    assert matches(signing, f"x509.subject: C=DE,ST=BY,O={composed}")
    assert not matches(signing, f"x509.subject: C=DE,ST=BY,O={decomposed}")


def test_n45_a_subject_cannot_spell_further_attributes_inside_a_value() -> None:
    signing = leaf(subject(COUNTRY_NAME="US", STATE_OR_PROVINCE_NAME="WA", ORGANIZATION_NAME="Evil,O=Contoso"))
    assert not matches(signing, "x509.subject: C=US,ST=WA,O=Contoso")
    assert matches(signing, r"x509.subject: C=US,ST=WA,O=Evil\,O=Contoso")


# -- overlap ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("C=US,ST=WA,O=A", "C=US,ST=WA,O=A", True),
        ("C=US,ST=WA,O=A", "O=A,S=WA,C=US", True),
        ("C=US,ST=WA,O=A", "C=US,ST=WA,O=A,CN=x", True),
        ("C=US,ST=WA,O=A", "C=US,ST=WA,O=B", False),
        ("C=US,ST=WA,O=A,CN=x", "C=US,ST=WA,O=A,OU=y", False),
        ("C=US,ST=WA,O=A,CN=x", "C=US,ST=WA,O=A,CN=y", False),
    ],
)
def test_identities_overlap_when_one_covers_the_other(one: str, other: str, expected: bool) -> None:
    first, second = (TrustedIdentity.parse(f"x509.subject: {dn}") for dn in (one, other))
    assert first.overlaps(second) is second.overlaps(first) is expected


def test_only_names_overlap() -> None:
    name, wildcard, other = (TrustedIdentity.parse(text) for text in ("x509.subject: C=US,ST=WA,O=A", "*", "a:b"))
    for identity in (wildcard, other):
        assert not identity.overlaps(name)
        assert not name.overlaps(identity)


# -- any text ---------------------------------------------------------------------------------------------------------


@given(st.text(max_size=60) | st.text(alphabet='CSTO=,;+\\# "<>aéf09', max_size=60))
def test_n70_any_text_is_an_identity_or_a_configuration_error(text: str) -> None:
    for identity in (text, f"x509.subject:{text}", f"x509.subject:C=US,ST=WA,O={text}"):
        with contextlib.suppress(ConfigurationError):
            TrustedIdentity.parse(identity)


values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    attributes=st.dictionaries(st.sampled_from(["CN", "OU", "L", "x"]), values, max_size=4),
    mandatory=st.fixed_dictionaries({"C": values, "ST": values, "O": values}),
    as_hex=st.booleans(),
)
def test_every_value_can_be_written_with_escapes(
    attributes: dict[str, str], mandatory: dict[str, str], as_hex: bool
) -> None:
    def written(value: str) -> str:
        if as_hex:
            return "".join(f"\\{octet:02x}" for octet in value.encode())
        return "".join(f"\\{character}" if character in ' #=+,;<>"\\' else character for character in value)

    expected = mandatory | attributes
    dn = ", ".join(f"{name}={written(value)}" for name, value in expected.items())
    assert parsed(dn) == expected


@given(value=values.filter(lambda text: len(text.encode()) <= 64), other=values)
def test_two_different_values_never_match(value: str, other: str) -> None:
    hexed = "".join(f"\\{octet:02x}" for octet in other.encode())
    signing = leaf(subject(COUNTRY_NAME="US", STATE_OR_PROVINCE_NAME="WA", ORGANIZATION_NAME=value))
    assert matches(signing, f"x509.subject: C=US,ST=WA,O={hexed}") is (value == other)
