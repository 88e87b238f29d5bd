"""Credentials: what to show a registry. One file a source; `chain.py` asks several in order."""
