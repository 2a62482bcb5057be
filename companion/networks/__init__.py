"""Networks that share layers between tasks."""

from companion.networks.hard_sharing import HardSharing

__all__ = ["HardSharing"]
