"""The face service, what every call passes through, and the one map from errors to statuses."""
