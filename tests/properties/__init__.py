"""Properties that hold for every input, over inputs that Hypothesis makes up."""
