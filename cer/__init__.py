"""Coherent Entropy Reactor: a network that controls the entropy of its own state."""

from cer.reactor import CoherentEntropyReactor
from cer.trajectory import ReactorOutput, ReactorState, TrajectoryStep

__all__ = ["CoherentEntropyReactor", "ReactorOutput", "ReactorState", "TrajectoryStep"]
