"""`pycni lint`: what is wrong in configuration files, with the place of each finding."""
