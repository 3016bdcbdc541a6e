"""Fits the detector to recorded students and judges it: `make fit`, `make evaluate`.

Needs the extra `evaluate` (numpy, scipy, scikit-learn, matplotlib) and data that is never shipped.
Features, models, patterns and the episode machine are those of `gaia_grpc.state`.
"""
