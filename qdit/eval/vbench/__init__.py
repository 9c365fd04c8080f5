"""VBench (Huang et al., arXiv 2311.17982): its dimensions by name, its totals, and the runner of its own code."""
