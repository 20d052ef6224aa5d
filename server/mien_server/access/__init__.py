"""Who may call, and what: keys, client certificates and tokens become callers with roles.

In the order of reading: `roles` (which method asks for what), `callers` (who calls), `keys` (the file of
keys), `keyring` (whose key that is), `gate` (what every call passes), `watching` (files that are read again),
`setup` (all of it, from the settings). Nothing here speaks gRPC: `rpc/gatekeeper.py` does.
"""
