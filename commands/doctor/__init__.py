"""`pycni doctor`: this node, line by line, with the remedy of what is not right."""
