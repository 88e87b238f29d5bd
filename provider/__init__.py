"""Countersign: a Gatekeeper external data provider that verifies container image signatures."""

__version__ = "0.1.0"
