"""The figures of `gaia bench`: one case a promise, measured on real peers with fsync."""
