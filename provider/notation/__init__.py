"""The Notary Project specification as pure functions: bytes, certificates, policy and time in; proof or refusal out.

The contract of this package:
- No input or output, no clock, no log, no configuration: whatever a decision needs is an argument. It imports the
  standard library, cryptography, cbor2 and the floors below (errors, strict_json, oci), nothing else.
- Every function here may be given any bytes at all. It answers in bounded time and memory, and fails with an error of
  provider.errors only; nothing that a parser or a cryptographic library raises or warns of gets out.
- A check returns what it established or raises. None returns a truth value that a caller could forget to look at.
- Equal arguments give equal answers, so results may be memoised; caches here are bounded and hold successes only.

An auditor who reads this package, policy.py and executor.py knows what lets an image in.
Source: github.com/notaryproject/specifications (signature specification, trust store and trust policy), version 1.1.
"""
