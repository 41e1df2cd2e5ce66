"""Datasets as tensors on the device: tables split by seed, images as bytes, augmented there."""

from qbench.data.problem import Problem, Samples, load_problem

__all__ = ["Problem", "Samples", "load_problem"]
