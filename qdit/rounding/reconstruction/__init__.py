"""AdaRound's reconstruction: units of a network are fitted to their full-precision outputs by gradient descent."""
