"""Photo in, faces out: decode, detect, choose, align, embed, compare."""
