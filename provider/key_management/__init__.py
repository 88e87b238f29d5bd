"""Sources of trusted certificates and keys: text in a resource, folders of files, key services."""
