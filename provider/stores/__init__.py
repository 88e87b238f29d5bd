"""Stores: where images and what refers to them are read from. One file a kind of store, their parts beside them."""
