"""Allocation of group sizes or bits to layers within a budget (mixed precision), by search or by solving a program."""

from qdit.search.base import Search
from qdit.search.evolution import Evolution
from qdit.search.fixed import Fixed
from qdit.search.hessian import Hessian
from qdit.search.ilp import ILP
from qdit.search.mixed_precision import MixedPrecision
from qdit.search.nuclear import Nuclear
from qdit.search.random import RandomSearch

__all__ = ["ILP", "Evolution", "Fixed", "Hessian", "MixedPrecision", "Nuclear", "RandomSearch", "Search"]
