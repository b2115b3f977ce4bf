"""Reinforcement learning for very high-dimensional bodies, simulator and learner on one device."""

__version__ = "0.1.0"
