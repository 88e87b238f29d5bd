"""The one language of configuration: Ratify's custom resources, read from manifests or watched in a cluster."""
