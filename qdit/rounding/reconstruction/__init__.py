"""Block reconstruction (BRECQ, AdaRound): units of a network learn their full-precision outputs by gradient descent."""
