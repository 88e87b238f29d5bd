"""Verifiers: what judges the artifacts that refer to an image. One file a kind of artifact."""
