"""What Gatekeeper talks to: the external data protocol, the TLS server that speaks it, health and metrics."""
