"""The demonstration: everything around Countersign that a cluster would have, in one process and on loopback.

An embedded registry, a throw-away PKI and signer, a time-stamp authority, revocation end points, and Gatekeeper's side
of an admission with the shipped Rego. `countersign demo` runs it; tests use its parts to build images and signatures,
good and bad. Nothing here takes part in a verification: the product never imports this package.
"""
