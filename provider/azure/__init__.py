"""Azure as its SDK reaches it: who this process is there, and what the SDK may do. Nothing here imports it unasked."""
