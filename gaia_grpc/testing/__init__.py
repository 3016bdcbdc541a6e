"""Real clusters for tests: this project's own and those of its users.

`Cluster` starts peer processes and injures them; `gaia_grpc.testing.plugin` has the fixtures.
"""

from gaia_grpc.testing.cluster import Cluster
from gaia_grpc.testing.process import PeerProcess, free_ports, peer_environment

__all__ = ["Cluster", "PeerProcess", "free_ports", "peer_environment"]
