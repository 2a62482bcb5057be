"""Networks that share layers between tasks.

- :func:`share`: any network in, one of T tasks with factorised weights out (:class:`SharedNetwork`)
- :func:`hard_sharing`: the same with the first layers common and the others separate
- :class:`HardSharing`: the classic, one hidden layer and a head per task
- :func:`train_replicas`: many small networks trained at once
"""

from companion.networks.hard_sharing import HardSharing, hard_sharing
from companion.networks.replicas import train_replicas
from companion.networks.share import share
from companion.networks.shared_network import SharedNetwork

__all__ = ["HardSharing", "SharedNetwork", "hard_sharing", "share", "train_replicas"]
