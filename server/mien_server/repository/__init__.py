"""The model repository: config.pbtxt, versions, manifests, and the life of slots."""
